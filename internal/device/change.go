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

// Part asks for some of the devices that match, in the order of their numbers: for work that goes
// through a fleet step by step.
type Part struct {
	Selector Selector // besides that of the scope
	Stages   []Stage  // none means any
	After    int64    // the number behind which to go on; 0 at the beginning
	Limit    int      // how many at most
}
