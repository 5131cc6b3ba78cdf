// Package purchase is the room of everything before a device is plugged in: suppliers, hardware
// models, purchase orders, goods-in, stock and warranty.
//
// An order and its states:
//
//	draft ──place──→ placed ──delivery──→ partly_received ──delivery──→ received ──close──→ closed
//	  │                │                        │
//	  └────cancel──────┴──→ cancelled           └──cancel the rest──→ received
//
// Placing an order creates each ordered unit as a device in stage "ordered"; while that takes more than
// a moment the order is placing. Work on thousands of units is done in small transactions and goes on
// after a crash; see work.go. A delivery is a CSV file
// of serial numbers. It is checked against the order first: rows that fit are booked onto open units
// (ordered → received); every other row becomes a discrepancy that somebody has to decide, because
// the room never guesses. A file that has a single unreadable row imports nothing.
package purchase
