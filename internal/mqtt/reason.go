package mqtt

import "fmt"

// Reason is a reason code of version 5 (section 2.4). From 0x80 on it means that something was refused.
type Reason byte

// Reasons that are used here or by the endpoint.
const (
	Success                Reason = 0x00
	DisconnectWithWill     Reason = 0x04
	NoMatchingSubscribers  Reason = 0x10
	NoSubscriptionExisted  Reason = 0x11
	UnspecifiedError       Reason = 0x80
	MalformedPacket        Reason = 0x81
	ProtocolError          Reason = 0x82
	ImplementationError    Reason = 0x83
	UnsupportedVersion     Reason = 0x84
	ClientIDInvalid        Reason = 0x85
	BadUserOrPassword      Reason = 0x86
	NotAuthorized          Reason = 0x87
	ServerUnavailable      Reason = 0x88
	ServerBusy             Reason = 0x89
	Banned                 Reason = 0x8a
	ServerShuttingDown     Reason = 0x8b
	BadAuthentication      Reason = 0x8c
	KeepAliveTimeout       Reason = 0x8d
	SessionTakenOver       Reason = 0x8e
	TopicFilterInvalid     Reason = 0x8f
	TopicNameInvalid       Reason = 0x90
	PacketIDInUse          Reason = 0x91
	PacketIDNotFound       Reason = 0x92
	ReceiveMaximumExceeded Reason = 0x93
	TopicAliasInvalid      Reason = 0x94
	PacketTooLarge         Reason = 0x95
	MessageRateTooHigh     Reason = 0x96
	QuotaExceeded          Reason = 0x97
	AdministrativeAction   Reason = 0x98
	PayloadFormatInvalid   Reason = 0x99
	RetainNotSupported     Reason = 0x9a
	QoSNotSupported        Reason = 0x9b
	SharedNotSupported     Reason = 0x9e
	ConnectionRateExceeded Reason = 0x9f
	SubscriptionIDsRefused Reason = 0xa1
	WildcardsNotSupported  Reason = 0xa2
)

var reasonNames = map[Reason]string{
	Success: "success", DisconnectWithWill: "disconnect with will", NoMatchingSubscribers: "no matching subscribers",
	NoSubscriptionExisted: "no subscription existed", UnspecifiedError: "unspecified error", MalformedPacket: "malformed packet",
	ProtocolError: "protocol error", ImplementationError: "implementation specific error",
	UnsupportedVersion: "unsupported protocol version", ClientIDInvalid: "client identifier not valid",
	BadUserOrPassword: "bad user name or password", NotAuthorized: "not authorized", ServerUnavailable: "server unavailable",
	ServerBusy: "server busy", Banned: "banned", ServerShuttingDown: "server shutting down",
	BadAuthentication: "bad authentication method", KeepAliveTimeout: "keep alive timeout", SessionTakenOver: "session taken over",
	TopicFilterInvalid: "topic filter invalid", TopicNameInvalid: "topic name invalid", PacketIDInUse: "packet identifier in use",
	PacketIDNotFound: "packet identifier not found", ReceiveMaximumExceeded: "receive maximum exceeded",
	TopicAliasInvalid: "topic alias invalid", PacketTooLarge: "packet too large", MessageRateTooHigh: "message rate too high",
	QuotaExceeded: "quota exceeded", AdministrativeAction: "administrative action", PayloadFormatInvalid: "payload format invalid",
	RetainNotSupported: "retain not supported", QoSNotSupported: "QoS not supported",
	SharedNotSupported: "shared subscriptions not supported", ConnectionRateExceeded: "connection rate exceeded",
	SubscriptionIDsRefused: "subscription identifiers not supported", WildcardsNotSupported: "wildcard subscriptions not supported",
}

func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason 0x%02x", byte(r))
}

// Failed tells whether the code refuses something.
func (r Reason) Failed() bool { return r >= 0x80 }
