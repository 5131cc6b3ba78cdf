// Package link is the door that devices use: HTTPS with mutual TLS. It knows who speaks, how much and
// how long, and hands the content to the rooms.
//
// A request passes, in this order: the bound on connections, TLS with any client certificate, the
// protocol number, for paths of devices the identity (on every request, so that a revocation counts
// from the next one on), the device's rate and number of requests at a time, the bounds of body and
// time, the room. TLS itself doesn't judge client certificates: a device whose certificate has expired
// or was revoked gets a problem document that says so, not an alert that nobody understands.
//
// Concurrency: one goroutine per connection or HTTP/2 stream, made by net/http. What they share is in
// doors, behind one lock that is never held during I/O.
package link
