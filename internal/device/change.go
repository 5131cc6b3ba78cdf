package device

// New is what a room asks the registry to bring into being: one physical unit.
type New struct {
	Tenant TenantID
	Serial string // maker's serial number; empty while it is not known
	Model  string // ID of the hardware model; empty when it was not bought through Steward
	Name   string // what people call it; may be empty
	Labels map[string]string
	Stage  Stage  // one of those in which a device may come into being
	Reason string // why it exists: "order ord-…, line 2", "found in the field"
}

// Move is what a room or an operator asks the registry to do with a device's stage.
type Move struct {
	Num    int64
	To     Stage
	Reason string // kept with the device and in its ledger
}

// Moved is a device after a move, and where it came from.
type Moved struct {
	Device
	From Stage
}

// Arrival is an ordered device that was delivered.
type Arrival struct {
	Num    int64
	Serial string // the maker's, as delivered
	Reason string
}
