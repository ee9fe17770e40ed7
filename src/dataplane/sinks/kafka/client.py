"""How a sink reaches a Kafka cluster, and what the cluster's errors mean to a pipeline.

In flow a connection's document and its secret, or an error of aiokafka; out flow a client's options, or one of the two
families of `failures`. Called by `sink`, `positions` and `topics`. The options are these and no others: properties of a
client can name files to read and addresses to call, so none passes through from a document.
"""

import ssl
from typing import Any

from aiokafka import errors

from contracts.codes import Code
from contracts.kafka import KafkaConfig, Sasl
from contracts.v2 import ConnectionDocument
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.postgres import Revealable

REQUEST_MILLISECONDS_MAX = 15_000
"""A broker that does not answer a request in this time is given up."""
CLIENT_ID = "pointsman"

_AUTHENTICATION = (
    errors.AuthenticationFailedError,
    errors.SaslAuthenticationFailed,
    errors.AuthenticationMethodNotSupported,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)
_RIGHTS = (
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.TransactionalIdAuthorizationFailed,
    errors.GroupAuthorizationFailedError,
    errors.PolicyViolationError,
)
_FENCED = (
    errors.ProducerFenced,
    errors.InvalidProducerEpoch,
    errors.TransactionCoordinatorFenced,
    errors.InvalidProducerIdMapping,
    errors.InvalidTxnState,
    errors.UnknownProducerId,
    errors.OutOfOrderSequenceNumber,
)
_TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError, errors.RecordTooLargeError)


def options(connection: ConnectionDocument, password: Revealable | None) -> dict[str, Any]:
    """Return what every client of this cluster is made with. It holds the password: it goes to aiokafka and nowhere else."""
    config = kafka_config(connection)
    made: dict[str, Any] = {
        "bootstrap_servers": list(config.brokers),
        "client_id": CLIENT_ID,
        "request_timeout_ms": REQUEST_MILLISECONDS_MAX,
        "security_protocol": ("SASL_" if config.sasl is not Sasl.NONE else "")
        + ("SSL" if config.ssl_mode != "disable" else "PLAINTEXT"),
    }
    if config.ssl_mode != "disable":
        made["ssl_context"] = ssl.create_default_context()
    if config.sasl is not Sasl.NONE:
        made["sasl_mechanism"] = config.sasl.value.upper()
        made["sasl_plain_username"] = config.user or ""
        made["sasl_plain_password"] = password.reveal() if password is not None else ""
    return made


def kafka_config(connection: ConnectionDocument) -> KafkaConfig:
    """Return the configuration of a connection that is one to Kafka.

    Raises:
        Permanent: it is one to another system (Code.CONNECTION_UNFIT).
    """
    if not isinstance(connection.config, KafkaConfig):
        raise Permanent(Code.CONNECTION_UNFIT, "the connection is not one to Kafka")
    return connection.config


def failure(error: BaseException, *, table: str | None = None) -> Failure:
    """Return what an error of the client means. Its text may quote a record: it stays in the node's log."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, _FENCED):
        return RetryLater(Code.SINK_FENCED, text, table=table)
    if isinstance(error, _AUTHENTICATION):
        return RetryLater(Code.SINK_AUTH_FAILED, text, table=table)
    if isinstance(error, _RIGHTS):
        return Permanent(Code.SINK_RIGHTS_MISSING, text, table=table)
    if isinstance(error, _TOO_LARGE):
        return Permanent(Code.SINK_VALUE_REFUSED, text, table=table)
    if isinstance(
        error, errors.InvalidReplicationFactorError | errors.InvalidPartitionsError | errors.InvalidTopicError
    ):
        return Permanent(Code.SINK_TABLE_MISMATCH, text, table=table)
    return RetryLater(Code.SINK_UNREACHABLE, text, table=table)
