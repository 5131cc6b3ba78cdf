// Package disposal is the room of the end of a device's life: retiring, sanitizing as of NIST
// SP 800-88r1, revoking, deregistering, and the certificate that proves it.
//
// A disposal and its states:
//
//	         the agent accepts      its signed statement: all destroyed
//	ordered ──────────────────→ accepted ───────────────────────────→ sanitized
//	   │                          │                                     ↑
//	   │   something resists      ↓        it goes on and succeeds      │
//	   ├────────────────────→  failed ──────────────────────────────────┤
//	   │                                                                │
//	   └──→ superseded (ordered anew, or attested) ─────────────────────┘
//
//	attested: written by people; no device needed
//
// An agent stays with the order that it has begun, so its statement counts for a superseded order too.
//
// A device reaches the stage "disposed" by one of two proofs: a statement that it signed with its own
// key before the key went, or the attestation of two named people. Either is stored, the certificates
// are revoked, the device moves and the ledger is told in one transaction. Once these events are in
// the ledger's signed tree, a disposal certificate is made: a signed document with all that is needed
// to check it without the server (see VerifyCertificate).
package disposal
