package server

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"steward/internal/wire"
)

// contractTypes are the messages and documents between server and devices.
var contractTypes = []any{
	wire.Trust{}, wire.Envelope{}, wire.Desired{}, wire.Report{}, wire.ReportAnswer{}, wire.Problem{},
	wire.Inventory{}, wire.Packages{}, wire.Services{}, wire.AgentReported{},
	wire.UpdateDesired{}, wire.UpdateReported{}, wire.ReleaseManifest{}, wire.MonitoringDesired{},
	wire.DisposalDesired{}, wire.DisposalReported{}, wire.SanitizationStatement{},
	wire.RemoteCommand{}, wire.RemoteCommands{}, wire.RemoteResult{}, wire.DeviceEvent{}, wire.Telemetry{}, wire.MessageProblem{},
}

// ContractSchemas returns the JSON Schemas (draft 2020-12) of the device contract, made from the types of
// package wire: one document with a definition per message. Unknown properties are allowed everywhere, as
// readers have to ignore them.
func ContractSchemas() ([]byte, error) {
	reg := huma.NewMapRegistry("#/$defs/", huma.DefaultSchemaNamer)
	var roots []map[string]string
	for _, v := range contractTypes {
		t := reflect.TypeOf(v)
		reg.Schema(t, true, t.Name())
		roots = append(roots, map[string]string{"$ref": "#/$defs/" + t.Name()})
	}
	defs := reg.Map()
	for _, name := range slices.Sorted(maps.Keys(defs)) {
		if defs[name].Type == huma.TypeObject && defs[name].Properties != nil {
			defs[name].AdditionalProperties = true
		}
	}
	doc, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"title":   "Steward device contract, protocol 1",
		"anyOf":   roots,
		"$defs":   defs,
	}, "", "  ")
	return append(doc, '\n'), err
}
