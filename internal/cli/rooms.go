package cli

import "github.com/spf13/cobra"

func (a *app) roomCommands() []*cobra.Command {
	return inGroup("room", a.deviceCommand(), a.orderCommand(), a.enrollCommand(), a.releaseCommand(), a.updateCommand(), a.monitorCommand(), a.remoteCommand(),
		a.disposeCommand(), a.verifyCommand(), a.ledgerCommand(), a.accessCommand())
}

// resources is the table that get, describe, apply and delete work from.
var resources = []resource{
	{
		names: []string{"device", "devices", "dev"}, path: "/devices", filters: []string{"stage", "selector", "presence", "model", "q"}, create: true,
		columns: []column{{"ID", "id"}, {"NAME", "name"}, {"SERIAL", "serial"}, {"MODEL", "model"}, {"STAGE", "stage"}, {"PRESENCE", "presence.state"}, {"LAST CONTACT", "presence.last_contact|age"}, {"LABELS", "labels|labels"}},
	},
	{
		names: []string{"supplier", "suppliers"}, path: "/suppliers", whole: true, create: true, key: "id", remove: true, hits: "a supplier with orders is refused",
		columns: []column{{"ID", "id"}, {"NAME", "name"}, {"CONTACT", "contact"}, {"EMAIL", "email"}},
	},
	{
		names: []string{"model", "models"}, path: "/models", whole: true, create: true, key: "id", remove: true, hits: "a model that an order names is refused",
		columns: []column{{"ID", "id"}, {"MAKER", "maker"}, {"NAME", "name"}, {"ARCH", "architecture"}, {"TPM", "tpm"}, {"SUPPORT ENDS", "support_end"}},
	},
	{
		names: []string{"order", "orders"}, path: "/orders", filters: []string{"state", "supplier", "number", "overdue", "undecided"}, create: true,
		columns: []column{{"ID", "id"}, {"NUMBER", "number"}, {"SUPPLIER", "supplier"}, {"STATE", "state"}, {"DUE", "due"}, {"CREATED", "created|age"}},
	},
	{
		names: []string{"discrepancy", "discrepancies"}, path: "/discrepancies", filters: []string{"order", "delivery", "kind", "undecided"}, listed: true,
		columns: []column{{"DELIVERY", "delivery"}, {"FILE LINE", "file_line"}, {"KIND", "kind"}, {"SERIAL", "serial"}, {"MODEL", "model"}, {"DECISION", "decision"}},
	},
	{
		names: []string{"token", "tokens", "enrollment-token", "enrollment-tokens"}, path: "/enrollment-tokens", filters: []string{"state", "device", "serial", "reused"}, listed: true, remove: true, hits: "the device can't enroll with it any more",
		columns: []column{{"ID", "id"}, {"SERIAL", "serial"}, {"DEVICE", "device"}, {"STATE", "state"}, {"EXPIRES", "expires|age"}, {"NOTE", "note"}},
	},
	{
		names: []string{"node", "nodes"}, path: "/nodes", whole: true, listed: true,
		columns: []column{{"NAME", "name"}, {"STATE", "state"}, {"SEEN", "seen|age"}, {"STARTED", "started|age"}, {"VERSION", "version"}, {"CONSOLE", "console"}, {"LINK", "link"}, {"LEASES", "leases"}},
	},
	{
		names: []string{"authority", "authorities"}, path: "/authorities", whole: true, listed: true,
		columns: []column{{"ID", "id"}, {"KIND", "kind"}, {"SUBJECT", "subject"}, {"EXPIRES", "expires|age"}},
	},
	{
		names: []string{"release", "releases"}, path: "/releases", filters: []string{"name"}, remove: true, hits: "what devices run or are assigned is refused",
		columns: []column{{"NAME", "name"}, {"VERSION", "version"}, {"SIZE", "size_bytes|bytes"}, {"COMPONENTS", "components|names"}, {"CREATED", "created|age"}, {"BY", "created_by.name"}},
	},
	{
		names: []string{"assignment", "assignments", "update", "updates"}, path: "/assignments", filters: []string{"name", "state"},
		columns: []column{{"ID", "id"}, {"RELEASE", "name"}, {"VERSION", "version"}, {"SELECTOR", "selector"}, {"STATE", "state"}, {"CREATED", "created|age"}},
	},
	{
		names: []string{"device-update", "device-updates"}, path: "/device-updates", filters: []string{"name", "version", "state", "cause"}, listed: true,
		columns: updateColumns,
	},
	{
		names: []string{"group", "groups"}, path: "/groups", create: true, remove: true, hits: "only the name; no device changes",
		columns: []column{{"NAME", "name"}, {"SELECTOR", "selector"}, {"NOTE", "note"}},
	},
	{
		names: []string{"command", "commands"}, path: "/commands", filters: []string{"device", "state", "name", "batch"},
		columns: []column{{"ID", "id"}, {"DEVICE", "device"}, {"COMMAND", "name"}, {"STATE", "state"}, {"GIVEN", "issued|age"}, {"BY", "by.name"}, {"DEADLINE", "deadline|age"}, {"CAUSE", "cause"}},
	},
	{
		names: []string{"device-event", "device-events"}, path: "/device-events", filters: []string{"device", "name", "severity", "since", "until"}, listed: true,
		columns: []column{{"AT", "at|age"}, {"DEVICE", "device"}, {"SEVERITY", "severity"}, {"EVENT", "name"}, {"TEXT", "text"}},
	},
	{
		names: []string{"disposal", "disposals"}, path: "/disposals", filters: []string{"state"},
		columns: []column{{"ID", "id"}, {"DEVICE", "device"}, {"SERIAL", "serial"}, {"STATE", "state"}, {"METHOD", "method"}, {"ORDERED", "created|age"}, {"CAUSE", "cause"}},
	},
	{
		names: []string{"event", "events"}, path: "/events", filters: []string{"kind", "device", "subject", "actor", "since", "until"}, columns: eventColumns,
	},
	{
		names: []string{"account", "accounts"}, path: "/accounts", create: true, remove: true, hits: "its sessions and tokens end",
		columns: []column{{"ID", "id"}, {"NAME", "name"}, {"ROLE", "role"}, {"SELECTOR", "selector"}, {"DISABLED", "disabled"}, {"SIGNED IN", "signed_in|age"}},
	},
	{
		names: []string{"api-token", "api-tokens"}, path: "/tokens", filters: []string{"account"}, listed: true, remove: true, hits: "programs that use it are refused at once",
		columns: []column{{"ID", "id"}, {"NAME", "name"}, {"ACCOUNT", "account_name"}, {"ROLE", "role"}, {"EXPIRES", "expires|age"}, {"USED", "used|age"}},
	},
	{
		names: []string{"tenant", "tenants"}, path: "/tenants", listed: true,
		columns: []column{{"ID", "id"}, {"NAME", "name"}, {"CREATED", "created|age"}},
	},
}

var updateColumns = []column{{"DEVICE", "device"}, {"NAME", "name"}, {"RELEASE", "release"}, {"VERSION", "version"}, {"STATE", "state"}, {"STEP", "step"}, {"CAUSE", "cause"}, {"CHANGED", "changed|age"}}
