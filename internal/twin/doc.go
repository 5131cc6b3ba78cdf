// Package twin keeps two pictures of each device: the desired state, what it should be, and the
// reported state, what it says that it is. Both are documents by section, one section per room, stored
// once under their SHA-256 and shared by all devices that have them.
//
//	room ── SetDesired ──▶ twin_desired, epoch + 1 ── Envelope (signed, expires) ──▶ agent
//	room ◀── Reaction ── twin_reported ◀── Report (hashes) ── Upload (unknown bodies) ── agent
//
// A report takes the shortest of four ways (see settle); each answers after what it says is committed:
//
//	memory ── says what this node has just read of the device (seen) ──▶ no statement
//	looks  ── many compared with committed state in two statements ──▶ unchanged: no transaction
//	takes  ── many plain changes in one transaction, a fixed number of statements (reportBatch)
//	alone  ── what concerns a room, with its reaction, in a transaction that is shared where it can be (take)
//
// The database is the truth. Messages on the bus only wake who waits for an epoch; a lost one costs the
// time until the waiter looks again by itself.
package twin
