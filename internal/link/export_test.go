package link

// Drops counts how often the server was told to forget what it knows of a device.
func (s *Server) Drops() int64 {
	s.who.mu.Lock()
	defer s.who.mu.Unlock()
	return s.who.drops
}
