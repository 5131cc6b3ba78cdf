// Package journal keeps what the agent must not forget when the power goes: a small key/value map and
// the progress of state machines, in one append-only file.
//
//	journal.log:  record record record …
//	record:       length (uint32, big endian) · CRC-32C of the body · body: {"k":key,"v":value}
//
// A Put returns only after the record is on stable storage. A kill at any instruction leaves either the
// old value or the new one: a record that was cut off at the end of the file is dropped at the next
// Open. The file is rewritten (write new, fsync, rename, fsync the directory) once most of it is old.
//
// Tests kill the agent at every write by Config.Crash, which is called before each step that reaches
// the disk.
package journal
