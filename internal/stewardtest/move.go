package stewardtest

// MoveTo makes the next StartServer use another database, and keys sealed under a master key when its file
// is given.
func (h *House) MoveTo(database, masterKeyFile string) {
	h.t.Helper()
	if h.stop != nil {
		h.t.Fatal("stop the server before it moves")
	}
	h.cfg.Database, h.cfg.MasterKeyFile = database, masterKeyFile
}
