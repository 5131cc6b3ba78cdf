// Package move takes a server's database from SQLite to PostgreSQL, while the server runs for most of it.
//
//	snapshot   of SQLite, by VACUUM INTO, beside a running server
//	copy       the snapshot into a schema of its own, table by table, in batches that are resumed after
//	           a failure; then the indexes
//	           – the server is stopped; from here on its data directory is locked –
//	difference what has changed since the snapshot, found by comparing every row, applied in one transaction
//	compare    rows and contents of every table, on both sides; the ledger is recomputed in the new database
//	switch     in one transaction, the tables get the schema that servers use
//
// A server that is started on the target too early finds none of it: until the switch everything is in the
// schema steward_incoming. A server that is started on the source too late is refused: the data directory is
// held (server.Hold) before the switch. So at any moment at most one of the two can take writes, and nothing
// that was acknowledged is in only one of them.
//
// What fails before the difference is applied is resumed from where it was; after that, the next attempt
// begins anew. The source is only read.
package move
