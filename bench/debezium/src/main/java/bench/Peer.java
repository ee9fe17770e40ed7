package bench;

import io.debezium.connector.jdbc.JdbcSinkConnectorTask;
import io.debezium.embedded.Connect;
import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import io.debezium.engine.format.Json;
import java.io.IOException;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.metrics.PluginMetrics;
import org.apache.kafka.connect.sink.ErrantRecordReporter;
import org.apache.kafka.connect.sink.SinkRecord;
import org.apache.kafka.connect.sink.SinkTaskContext;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Runs Debezium's embedded engine until it has given a number of rows, and prints what that took.
 *
 * <p>Called by bench/debezium.py with a file of properties: those of the engine, `bench.rows`, `bench.warmup`,
 * `bench.into` (`discard`, `json` or `jdbc`) and, with the prefix `sink.`, those of the JDBC sink. With `discard` the records stay what the
 * connector made, with `json` they are serialised. With `jdbc` Debezium's own sink task gets them without Kafka between.
 * The line printed at the end has seconds and CPU seconds from the first row after the warm-up to the last, the
 * number of rows between, and the peak of its resident memory.
 */
public final class Peer {
    private final long rows;
    private final long warmup;
    private long seen;
    private long seenBefore;
    private long firstNanos;
    private double firstCpu;

    private Peer(Properties properties) {
        rows = Long.parseLong(properties.getProperty("bench.rows"));
        warmup = Long.parseLong(properties.getProperty("bench.warmup"));
    }

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (Reader file = Files.newBufferedReader(Path.of(arguments[0]))) {
            properties.load(file);
        }
        Peer peer = new Peer(properties);
        DebeziumEngine<?> engine = switch (properties.getProperty("bench.into")) {
            case "discard" -> peer.discarding(properties);
            case "json" -> peer.serialising(properties);
            case "jdbc" -> peer.delivering(properties);
            default -> throw new IllegalArgumentException("bench.into");
        };
        System.out.println("started");
        engine.run();
        throw new IllegalStateException("the engine ended after " + peer.seen + " rows");
    }

    private DebeziumEngine<?> discarding(Properties properties) {
        return DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
            .using(properties)
            .using(Peer::ended)
            .notifying((List<RecordChangeEvent<SourceRecord>> records,
                        DebeziumEngine.RecordCommitter<RecordChangeEvent<SourceRecord>> committer) -> {
                begin();
                committer.markProcessed(records.get(records.size() - 1));
                committer.markBatchFinished();
                count(records.size());
            })
            .build();
    }

    private DebeziumEngine<?> serialising(Properties properties) {
        return DebeziumEngine.create(Json.class)
            .using(properties)
            .using(Peer::ended)
            .notifying((List<ChangeEvent<String, String>> records,
                        DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer) -> {
                begin();
                committer.markProcessed(records.get(records.size() - 1));
                committer.markBatchFinished();
                count(records.size());
            })
            .build();
    }

    private DebeziumEngine<?> delivering(Properties properties) {
        Map<String, String> settings = new HashMap<>();
        for (String name : properties.stringPropertyNames()) {
            if (name.startsWith("sink.")) {
                settings.put(name.substring("sink.".length()), properties.getProperty(name));
            }
        }
        JdbcSinkConnectorTask task = new JdbcSinkConnectorTask();
        task.initialize(new Context(settings));
        task.start(settings);
        return DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
            .using(properties)
            .using(Peer::ended)
            .notifying((List<RecordChangeEvent<SourceRecord>> records,
                        DebeziumEngine.RecordCommitter<RecordChangeEvent<SourceRecord>> committer) -> {
                begin();
                List<SinkRecord> batch = new ArrayList<>(records.size());
                long offset = seen;
                for (RecordChangeEvent<SourceRecord> each : records) {
                    SourceRecord record = each.record();
                    batch.add(new SinkRecord(record.topic(), 0, record.keySchema(), record.key(), record.valueSchema(),
                        record.value(), offset++));
                }
                task.put(batch);
                if (task.getLastProcessingException() != null) {
                    fail(task.getLastProcessingException());
                }
                committer.markProcessed(records.get(records.size() - 1));
                committer.markBatchFinished();
                count(records.size());
            })
            .build();
    }

    private void begin() {
        if (firstNanos == 0 && seen >= warmup) {
            seenBefore = seen;
            firstNanos = System.nanoTime();
            firstCpu = cpuSeconds();
        }
    }

    private void count(int more) {
        seen += more;
        if (seen < rows) {
            return;
        }
        double cpu = cpuSeconds();
        double seconds = (System.nanoTime() - firstNanos) / 1e9;
        System.out.printf("{\"seconds\": %.6f, \"cpu\": %.6f, \"rows\": %d, \"memory\": %d}%n",
            seconds, cpu - firstCpu, seen - seenBefore, peakBytes());
        System.out.flush();
        // The slot is the caller's, and everything that was counted is flushed: an orderly end would only take its time.
        Runtime.getRuntime().halt(0);
    }

    private static void ended(boolean success, String message, Throwable error) {
        fail(error != null ? error : new IllegalStateException(message));
    }

    private static void fail(Throwable error) {
        error.printStackTrace();
        Runtime.getRuntime().halt(1);
    }

    private static double cpuSeconds() {
        var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        return system.getProcessCpuTime() / 1e9;
    }

    private static long peakBytes() {
        try (var lines = Files.lines(Path.of("/proc/self/status"))) {
            String line = lines.filter(each -> each.startsWith("VmHWM:")).findFirst().orElseThrow();
            return Long.parseLong(line.replaceAll("\\D", "")) << 10;
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    /** What Kafka Connect would be to the sink task. */
    private record Context(Map<String, String> configs) implements SinkTaskContext {
        @Override
        public void offset(Map<TopicPartition, Long> offsets) {}

        @Override
        public void offset(TopicPartition partition, long offset) {}

        @Override
        public void timeout(long milliseconds) {}

        @Override
        public Set<TopicPartition> assignment() {
            return Set.of();
        }

        @Override
        public void pause(TopicPartition... partitions) {}

        @Override
        public void resume(TopicPartition... partitions) {}

        @Override
        public void requestCommit() {}

        @Override
        public PluginMetrics pluginMetrics() {
            return null;
        }

        @Override
        public ErrantRecordReporter errantRecordReporter() {
            return null;
        }
    }
}
