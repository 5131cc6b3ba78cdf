package link

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"steward/internal/wire"
)

// asyncAPI is as much of api/asyncapi.yaml as has to agree with the code.
type asyncAPI struct {
	Info     struct{ Version string }
	Channels map[string]struct {
		Address  string
		Messages map[string]ref
	}
	Operations map[string]struct {
		Action  string
		Channel ref
		Reply   struct{ Channel ref }
	}
	Components struct {
		Messages map[string]struct{ Payload ref }
	}
	Servers map[string]struct {
		Pathname string
		Bindings struct {
			MQTT struct{ KeepAlive, MaximumPacketSize int }
		}
	}
}

type ref struct {
	Ref string `json:"$ref"`
}

func TestAsyncAPINamesTheTopicsThatTheLinkServes(t *testing.T) {
	data, err := os.ReadFile("../../api/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc asyncAPI
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for name, follows := range upNames {
		want[addressOf(wire.TopicUp, name, follows)] = true
	}
	for _, name := range downTopics {
		want[addressOf(wire.TopicDown, name, name == wire.TopicDocument)] = true
	}
	ss := &session{id: "dev-1"}
	got, actions := map[string]bool{}, map[string]string{}
	for key, c := range doc.Channels {
		got[c.Address] = true
		topic := strings.NewReplacer("{device}", wire.Me, "{hash}", string(wire.HashOf(nil)), "{id}", "c1").Replace(c.Address)
		_, upErr := ss.address(topic)
		_, down := filterOf("dev-1", topic)
		if (upErr == nil) == down {
			t.Errorf("channel %s: %s is no topic of the link", key, topic)
		}
		actions["#/channels/"+key] = map[bool]string{true: "receive", false: "send"}[down]
		for _, m := range c.Messages {
			if _, ok := doc.Components.Messages[strings.TrimPrefix(m.Ref, "#/components/messages/")]; !ok {
				t.Errorf("channel %s: no message %s", key, m.Ref)
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("channels %v\nthe link has %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	used := map[string]bool{}
	for name, op := range doc.Operations {
		used[op.Channel.Ref] = true
		if actions[op.Channel.Ref] != op.Action || (op.Reply.Channel.Ref != "" && actions[op.Reply.Channel.Ref] != "receive") {
			t.Errorf("operation %s: action %q on %s, reply on %s", name, op.Action, op.Channel.Ref, op.Reply.Channel.Ref)
		}
	}
	if len(used) != len(doc.Channels) {
		t.Errorf("%d of %d channels have an operation", len(used), len(doc.Channels))
	}
	for name, s := range doc.Servers {
		if b := s.Bindings.MQTT; b.KeepAlive != wire.MaxMQTTKeepAlive || b.MaximumPacketSize != wire.MaxMQTTBytes || (name == "webSocket" && s.Pathname != wire.PathMQTT) {
			t.Errorf("server %s: %+v", name, s)
		}
	}
}

func addressOf(direction, name string, follows bool) string {
	address := wire.Topic("{device}", direction, name)
	switch {
	case !follows:
	case name == wire.TopicResult:
		address += "/{id}"
	default:
		address += "/{hash}"
	}
	return address
}

func TestAsyncAPIRefersToSchemasThatThereAre(t *testing.T) {
	data, err := os.ReadFile("../../api/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc asyncAPI
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile("../../api/device-contract.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schemas struct {
		Defs map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal(data, &schemas); err != nil {
		t.Fatal(err)
	}
	n := 0
	for name, m := range doc.Components.Messages {
		def, ok := strings.CutPrefix(m.Payload.Ref, "./device-contract.schema.json#/$defs/")
		if !ok {
			continue // not one of our types
		}
		n++
		if _, has := schemas.Defs[def]; !has {
			t.Errorf("message %s: no schema %s", name, def)
		}
	}
	if n < 8 {
		t.Errorf("only %d messages have a schema", n)
	}
}
