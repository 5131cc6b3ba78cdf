// Package update is the room of who gets which release when, and how far they are.
//
// An assignment says "the devices that match this selector run this version of that release". For each
// device and release name the newest active assignment that matches decides. Nothing is rendered per
// device: devices that want the same releases share one document, and an assignment to 100,000 devices
// is a fixed number of statements per group of devices that wanted the same before.
//
// How far a device is with an assignment:
//
//	pending → downloading → downloaded → installed → healthy → committed
//	   └───────────┴────────────┴────────────┴──────────┴──→ rolled_back | failed
//
//	open states ──newer assignment──▶ superseded
//	            ──cancel───────────▶ cancelled
//	            ──left the selector or the service──▶ withdrawn
//
// Only committed is success. Within an attempt a state never goes back, the first cause of a failure is
// never overwritten, and a failure never becomes a success: for that an operator asks for the next
// attempt. A committed update that the device later reports as rolled back counts as rolled back.
package update
