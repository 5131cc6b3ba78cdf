// Package link is the door that devices use: HTTPS and MQTT with mutual TLS. It knows who speaks, how much
// and how long, and hands the content to the rooms.
//
// A connection passes, in this order: the bound on connections, TLS with any client certificate, a few at a
// time, and ALPN, which leads it to net/http or to a session of MQTT. A request passes the protocol number,
// for paths of devices the identity (kept for a minute, or until the bus says that it has changed), the
// device's rate and number of requests at a time, the bounds of body and time, the room; a message of MQTT
// the packet's form, the same identity and the same rate, the topic, the room. TLS itself doesn't judge
// client certificates: a device whose certificate has expired or was revoked gets a problem document, or a
// CONNACK, that says so, not an alert that nobody understands.
//
//	accept → greet ─ALPN→ net/http  → request.go, routes.go, poll.go ─┐
//	                  └─→ session.go → connect.go, receive.go         ├→ up.go → rooms
//	                                   push.go → deliver.go           ┘
//
// MQTT is an endpoint, not a broker: a device speaks to the server and hears from it, on topics of its own.
// Nothing of a session outlives its connection, because the database knows what is open.
//
// Concurrency: one goroutine per request, made by net/http; one per session at a time, see session. What
// they share is in doors, behind one lock that is never held during I/O. An idle device costs what its TLS
// state takes, 4 KiB, a goroutine of 2 KiB that waits, and about 2 KiB of ours; slim.go, crew.go and conn.go
// are there for that.
package link
