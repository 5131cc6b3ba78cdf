package purchase

import "steward/internal/ledger"

// Describe tells the room's events to people, by kind; for ledger.Config.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"purchase.order_created":       ledger.Tell("The order {number} was drafted: {units} units of {supplier}"),
		"purchase.order_changed":       ledger.Tell("The order {number} was changed"),
		"purchase.work_begun":          ledger.Tell("The order {number} is {what}: {units} units"),
		"purchase.order_placed":        ledger.Tell("The order {number} was placed: {units} units of {supplier}"),
		"purchase.order_cancelled":     ledger.Tell("What was open of the order {number} was cancelled"),
		"purchase.line_cancelled":      ledger.Tell("What was open of a line of the order {number} was cancelled"),
		"purchase.order_closed":        ledger.Tell("The order {number} was closed"),
		"purchase.delivery_booked":     ledger.Tell("A delivery of the order {number} was booked: {booked} of {rows} units fit"),
		"purchase.received":            ledger.Tell("Was delivered with the order {order}"),
		"purchase.discrepancy_decided": ledger.Tell("{serial} of the order {number}: {decision}"),
		"purchase.supplier_created":    ledger.Tell("The supplier {subject} was added"),
		"purchase.supplier_changed":    ledger.Tell("The supplier {subject} was changed"),
		"purchase.supplier_deleted":    ledger.Tell("The supplier {subject} was deleted"),
		"purchase.model_created":       ledger.Tell("The hardware model {subject} was added"),
		"purchase.model_changed":       ledger.Tell("The hardware model {subject} was changed"),
		"purchase.model_deleted":       ledger.Tell("The hardware model {subject} was deleted"),
	}
}
