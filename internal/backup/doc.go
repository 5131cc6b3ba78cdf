// Package backup takes a consistent copy of a server that runs on its embedded engines, while it runs,
// and brings it back. Its subpackage move takes the database to another engine.
//
// An archive is a tar file, compressed with zstd (RFC 8878) and encrypted with age (age-encryption.org/v1)
// unless somebody asked for a plain one:
//
//	steward-backup.json   Header: format, when, which version of Steward and of each room's tables
//	steward.db            the database at one moment, by VACUUM INTO
//	keys/…                Steward's own keys
//	artifacts/sha256/…    files of releases
//	metrics/…             time series: blocks and write-ahead logs
//	manifest.json         Manifest: every file above with size and SHA-256; an archive without it was cut off
//
// Not in it: uploads that are not finished, the bootstrap file, locks, and what a server keeps elsewhere:
// artifacts in a bucket, the console's certificate, its flags.
//
// # What is consistent with what
//
// The database is the state at the moment when its snapshot began: everything that was acknowledged before
// is in it. Keys and artifacts are listed before and after that moment and are taken when they stood at
// either, so that whatever the database names is there; an artifact that is named and missing has the
// snapshot taken again. Files are held by hard links meanwhile, so that nothing that is replaced or deleted
// goes missing while the archive is written, and no second copy of them is made. The database needs its own
// size once more in the data directory.
//
// Metrics are a crash image of the time-series database: first the blocks, then its logs, then the blocks
// that were made meanwhile. A sample is in a block or in the logs at any moment, so none is missed; the last
// record of the logs may be cut in the middle, which the database repairs when it is opened.
//
// # After a restore
//
// The ledger says that it happened (kind "ledger.restored"). Each device's epoch and the versions of the
// release metadata that the server signs are raised far beyond what a device can have seen, so that one
// which had accepted a later state takes the restored one.
package backup
