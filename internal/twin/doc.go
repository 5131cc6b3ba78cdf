// Package twin keeps two pictures of each device: the desired state, what it should be, and the
// reported state, what it says that it is. Both are documents by section, one section per room, stored
// once under their SHA-256 and shared by all devices that have them.
//
//	room ── SetDesired ──▶ twin_desired, epoch + 1 ── Envelope (signed, expires) ──▶ agent
//	room ◀── Reaction ── twin_reported ◀── Report (hashes) ── Upload (unknown bodies) ── agent
//
// The database is the truth. Messages on the bus only wake who waits for an epoch; a lost one costs the
// time until the waiter looks again by itself.
package twin
