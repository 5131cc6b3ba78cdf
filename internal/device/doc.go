// Package device holds what every room agrees on about a device: its identity, its tenant, its
// stage in the one lifecycle, its labels and the selectors that pick devices by them.
//
// The lifecycle:
//
//	ordered → received → staged → enrolled → active ⇄ quarantined
//	                                           │
//	                            in_transfer ←──┼──→ retired → disposed
//	                                 └→ received (by the new owner)
//
// The package imports the standard library only. Who stores devices is the room registry; who may
// guard a move is joined in package server.
package device
