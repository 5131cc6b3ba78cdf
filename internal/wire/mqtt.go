package wire

import "strings"

// MQTT carries the same messages as HTTPS, for devices that stay connected: 3.1.1 and 5, mutual TLS, on
// the link's port (ALPN "mqtt"), on port 8883, and as WebSocket (subprotocol "mqtt") at PathMQTT. It is an
// endpoint, not a broker: a device publishes below its own TopicUp and subscribes below its own TopicDown,
// and nothing is retained. A PUBACK comes after the commit.
//
// Topics are TopicPrefix, the device's ID or Me, "up" or "down", and one of the names below:
//
//	steward/v1/me/up/report            Report; the answer comes on down/report
//	steward/v1/me/up/document/<hash>   the body of a document that an answer has named as missing
//	steward/v1/me/up/fetch/<hash>      empty; the body of a desired document comes on down/document/<hash>
//	steward/v1/me/up/desired           empty; the envelope comes on down/desired
//	steward/v1/me/up/metrics           OTLP ExportMetricsServiceRequest; JSON when it begins with "{", else protobuf
//	steward/v1/me/up/telemetry         Telemetry
//	steward/v1/me/up/event             DeviceEvent
//	steward/v1/me/up/result/<id>       RemoteResult
//	steward/v1/me/down/desired         Envelope of Desired: upon subscription and after each change
//	steward/v1/me/down/report          ReportAnswer
//	steward/v1/me/down/document/<hash> a desired document
//	steward/v1/me/down/command         RemoteCommand: upon subscription and as they are given, until there is a result
//	steward/v1/me/down/problem         MessageProblem: why a message was refused
//
// With MQTT 5, Correlation Data of a message is repeated in its answer and in its problem.
const (
	TopicPrefix = "steward/v1/"
	Me          = "me" // stands for the ID of whose certificate it is
	TopicUp     = "up"
	TopicDown   = "down"

	TopicReport    = "report"
	TopicDocument  = "document"
	TopicFetch     = "fetch"
	TopicDesired   = "desired"
	TopicMetrics   = "metrics"
	TopicTelemetry = "telemetry"
	TopicEvent     = "event"
	TopicResult    = "result"
	TopicCommand   = "command"
	TopicProblem   = "problem"
)

// Topic joins the parts of a topic, "steward/v1/me/up/document/<hash>". name may have a slash in it.
func Topic(device, direction, name string) string {
	return TopicPrefix + device + "/" + direction + "/" + name
}

// ParseTopic splits a topic or a filter below TopicPrefix; rest is what follows the name and its slash.
func ParseTopic(topic string) (device, direction, name, rest string, ok bool) {
	topic, ok = strings.CutPrefix(topic, TopicPrefix)
	if !ok {
		return "", "", "", "", false
	}
	parts := strings.SplitN(topic, "/", 4)
	if len(parts) < 3 {
		return "", "", "", "", false
	}
	if len(parts) == 4 {
		rest = parts[3]
	}
	return parts[0], parts[1], parts[2], rest, true
}

// ALPNMQTT is the protocol name of MQTT in TLS.
const ALPNMQTT = "mqtt"

// PathMQTT is where the link answers WebSocket upgrades with the subprotocol "mqtt".
const PathMQTT = "/mqtt"

// Bounds of MQTT. A document that is larger than MaxMQTTBytes travels by HTTPS.
const (
	MaxMQTTBytes       = 256 << 10 // of a whole packet
	MaxMQTTConnections = 4         // of one device, told apart by their client IDs
	MQTTReceiveMaximum = 32        // QoS 1 messages on their way at a time, in each direction
	MaxMQTTKeepAlive   = 1200      // seconds; a device with MQTT 5 that asks for more or for none gets this
)

// UserPropertyReconnect is a user property (MQTT 5) of CONNACK and DISCONNECT: when the connection is lost,
// the device waits a random time between 0 and this many seconds before it connects again. It grows with
// the number of connected devices.
const UserPropertyReconnect = "steward-reconnect-seconds"

// UserPropertyEpoch is a user property of the device's CONNECT (MQTT 5): the epoch of the desired state that it
// has accepted. Upon subscription the envelope then comes only when there is a newer one.
const UserPropertyEpoch = "steward-epoch"

// UserPropertyCode is a user property (MQTT 5) of a CONNACK that refuses: the Problem's Code for it, if any.
const UserPropertyCode = "steward-code"

// MessageProblem says on down/problem why a message was refused.
type MessageProblem struct {
	Problem
	Topic string `json:"topic"` // of the refused message
}

// Telemetry is a simple measurement: names with numbers, each a gauge. Names are as in OTLP, letters,
// digits and . _ -, at most 128 bytes.
type Telemetry struct {
	TimeUnixMillis int64              `json:"time_unix_millis,omitempty"` // 0 means now
	Metrics        map[string]float64 `json:"metrics"`
}
