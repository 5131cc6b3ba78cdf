package bus

// ClientURL is the port at which the server inside would take clients from elsewhere.
func (b *Bus) ClientURL() string { return b.server.ClientURL() }
