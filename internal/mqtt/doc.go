// Package mqtt reads and writes the packets of MQTT 3.1.1 and 5 (OASIS standards; sections named in
// comments are those of version 5), and is a small client of version 5. The server's endpoint, the
// agent and the load generator share it.
//
// The packets' fields are coded by a kept library, which believes what it reads; so each packet's form
// is checked first, by check: lengths, flags, and each property's type, place and range. What passes
// is well formed, and nothing that a peer sends makes the reader hold more memory than has arrived.
//
// Reading and writing one connection are independent: one goroutine may read while others write. The
// functions here keep nothing between calls, so that an idle connection costs nothing.
package mqtt
