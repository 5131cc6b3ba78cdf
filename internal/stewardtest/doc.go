// Package stewardtest runs a whole Steward for tests: a real server, real agents on simulated machines,
// and the programs themselves as processes that can be killed.
//
//	h := stewardtest.Start(t, stewardtest.Options{})
//	a := h.Enlist(1)[0] // ordered, received, enrolled, active
//	h.Dispose(a)
//
// Everything goes through the public doors: the API, the link and the files that an operator has. A
// House closes what it has opened; Main fails a package in which a goroutine is left over.
package stewardtest
