// Package update is the agent's side of the room update: it brings the device to the releases that it
// should run, and back when that fails.
//
// What is installed is decided by signatures, not by the server: a release's manifest and its artifacts
// are targets of the tenant's TUF repository, verified from a pinned root. The desired section only
// names a manifest.
//
// One state machine per release, journaled before each step, all components or none:
//
//	fetch ─► unpack ─► pre ─► switch ─► post ─► health ─► commit
//	  │         │       │        │        │        │
//	  └─────────┴───────┴► failed└────────┴────────┴─► rollback ─► rolled back
//
// Before the switch nothing that runs is touched, so a failure there just ends the attempt. From the
// switch on a failure brings the former versions back and runs their post commands. After a kill the
// machine goes on at the step it was in; a step that was interrupted maxStarts times counts as failed, so
// that a release that takes the machine down with it goes back as well. The first cause of a failure is
// never overwritten.
//
//	DIR/tuf/                                      trusted metadata
//	DIR/download/<sha256>.part                    unfinished downloads
//	DIR/releases/<release>/<component>/versions/<version>-<hash>/
//	DIR/releases/<release>/<component>/current    link to the version that runs
package update
