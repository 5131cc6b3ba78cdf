// Package signing is the operator's side of a release: it makes the offline keys, signs root and
// targets metadata and checks what others have signed. It knows no server and no database, so that the
// command line can use it on a machine without network, and the server uses the same code in managed
// mode and to verify what it is given.
//
// The roles of The Update Framework (https://theupdateframework.github.io/specification/v1.0.31):
//
//	root       offline  names the keys of all roles; devices pin it and walk its versions one by one
//	targets    offline  lists every manifest and artifact with length and SHA-256
//	snapshot   online   names the version of targets, so that old and new can't be mixed
//	timestamp  online   names the snapshot and lives a day, so that a device notices being held back
//
// A stolen server has the two online keys only. With them it can hold devices back for as long as the
// timestamp lives, and never make them install anything.
package signing
