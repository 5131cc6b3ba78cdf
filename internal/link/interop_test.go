package link_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	paho5 "github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"

	"steward/internal/device"
	"steward/internal/provisioning"
	"steward/internal/wire"
)

// The tests here run clients that others have made, unchanged.

// files writes what a foreign client needs: cert.pem, key.pem and link.pem.
func (m *machine) files(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(m.cert.PrivateKey)
	m.h.must(err)
	root, err := m.h.prov.LinkRoot(context.Background())
	m.h.must(err)
	for name, data := range map[string][]byte{
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Certificate[0]}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"link.pem": []byte(root),
	} {
		m.h.must(os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	return dir
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// run runs a foreign program in dir and returns what it says.
func run(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestMosquittoClientsSpeakUnchanged(t *testing.T) {
	pub, sub := toolOf(t, "mosquitto_pub", "mosquitto-clients"), toolOf(t, "mosquitto_sub", "mosquitto-clients")
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	dir := m.files(t)
	for _, door := range []struct {
		name string
		args []string
	}{
		{"its own port", []string{"-p", portOf(h.mqtt)}},
		{"the port of HTTPS, by ALPN", []string{"-p", portOf(h.addr), "--tls-alpn", "mqtt"}},
	} {
		for _, version := range []string{"mqttv311", "mqttv5"} {
			for _, qos := range []string{"0", "1", "2"} {
				base := append([]string{"-h", "127.0.0.1", "--cafile", "link.pem", "--cert", "cert.pem", "--key", "key.pem", "-V", version, "-q", qos}, door.args...)
				name := version + "-" + qos
				out, err := run(t, dir, sub, append(base, "-t", "steward/v1/me/down/desired", "-C", "1", "-W", "20")...)
				if err != nil || !strings.Contains(out, "payloadType") {
					t.Errorf("%s, subscription by %s: %v\n%s", door.name, name, err, out)
				}
				out, err = run(t, dir, pub, append(base, "-t", "steward/v1/me/up/event", "-m", `{"name":"`+name+`"}`)...)
				if err != nil || out != "" {
					t.Errorf("%s, message by %s: %v\n%s", door.name, name, err, out)
				}
				eventually(t, func() bool { return slices.Contains(h.orders.seen(&h.orders.events), "SN-1 "+name) })
				h.orders.mu.Lock()
				h.orders.events = nil
				h.orders.mu.Unlock()
			}
		}
	}
	// A refusal is shown by the client in its own words.
	out, _ := run(t, dir, pub, "-h", "127.0.0.1", "-p", portOf(h.mqtt), "--cafile", "link.pem", "--cert", "cert.pem", "--key", "key.pem", "-V", "mqttv5", "-q", "1", "-t", "steward/v1/other/up/event", "-m", "{}")
	if !strings.Contains(strings.ToLower(out), "not authorized") {
		t.Errorf("another device's topic: %s", out)
	}
	out, err := run(t, dir, pub, "-h", "127.0.0.1", "-p", portOf(h.mqtt), "--cafile", "link.pem", "-V", "mqttv5", "-q", "1", "-t", "steward/v1/me/up/event", "-m", "{}")
	if err == nil || !strings.Contains(strings.ToLower(out), "not authorized") {
		t.Errorf("without a certificate: %v %s", err, out)
	}
}

// pahoScript is a device in Python: it subscribes, reports, and ends when it has its answer.
const pahoScript = `
import json, sys, time
import paho.mqtt.client as mqtt
host, port, version, transport = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
got = {}
def on_connect(c, *_):
    c.subscribe("steward/v1/me/down/#", 1)
def on_message(c, _, m):
    got[m.topic] = m.payload
    if m.topic.endswith("/down/desired"):
        report = {"protocol": 1, "boot": "b%d%s" % (version, transport), "sequence": 1, "instance": "i", "time": "2026-01-01T00:00:00Z", "epoch": 1}
        c.publish("steward/v1/me/up/report", json.dumps(report), qos=1)
    if m.topic.endswith("/down/report"):
        print("epoch", json.loads(m.payload)["epoch"])
        c.disconnect()
args = dict(client_id="paho-%d" % version, protocol=version, transport=transport)
c = mqtt.Client(mqtt.CallbackAPIVersion.VERSION1, **args) if hasattr(mqtt, "CallbackAPIVersion") else mqtt.Client(**args)
c.on_connect, c.on_message = on_connect, on_message
if transport == "websockets":
    c.ws_set_options(path="/mqtt")
c.tls_set("link.pem", "cert.pem", "key.pem")
c.connect(host, port, 60)
c.loop_forever()
`

func TestPahoForPythonSpeaksUnchangedAlsoOverWebSocket(t *testing.T) {
	python := pythonWithPaho(t)
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	dir := m.files(t)
	for _, row := range [][]string{{portOf(h.mqtt), "4", "tcp"}, {portOf(h.mqtt), "5", "tcp"}, {portOf(h.addr), "4", "websockets"}, {portOf(h.addr), "5", "websockets"}} {
		out, err := run(t, dir, python, append([]string{"-c", pahoScript, "127.0.0.1"}, row...)...)
		if err != nil || strings.TrimSpace(out) != "epoch 1" {
			t.Errorf("%v: %v\n%s", row, err, out)
		}
	}
	seen := strings.Join(h.orders.seen(&h.orders.presence), "\n")
	for _, via := range []string{"mqtt/3.1.1\n", "mqtt/5\n", "mqtt/3.1.1+ws\n", "mqtt/5+ws\n"} {
		if !strings.Contains(seen+"\n", via) {
			t.Errorf("nobody came by %q:\n%s", via, seen)
		}
	}
}

// pythonWithPaho finds a Python that has paho: Debian's, as a rule.
func pythonWithPaho(t *testing.T) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(python, "-c", "import paho.mqtt.client").Run() == nil {
			return python
		}
	}
	return toolOf(t, "python3 with paho", "python3-paho-mqtt")
}

func (m *machine) config(protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: m.h.roots, ServerName: "127.0.0.1", Certificates: []tls.Certificate{m.cert}, NextProtos: protocols}
}

func TestPahoForGoSpeaks311Unchanged(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	for _, server := range []string{"ssl://" + h.mqtt, "wss://" + h.addr + wire.PathMQTT} {
		o := paho3.NewClientOptions().AddBroker(server).SetClientID("paho").SetTLSConfig(m.config()).SetCleanSession(true).SetAutoReconnect(false)
		if u, err := url.Parse(server); err == nil && u.Scheme == "wss" {
			o.SetTLSConfig(m.config("http/1.1"))
		}
		c := paho3.NewClient(o)
		done := func(token paho3.Token) {
			t.Helper()
			if !token.WaitTimeout(10*time.Second) || token.Error() != nil {
				t.Fatalf("%s: %v", server, token.Error())
			}
		}
		done(c.Connect())
		got := make(chan string, 10)
		done(c.Subscribe(down(wire.TopicDesired), 1, func(_ paho3.Client, msg paho3.Message) { got <- msg.Topic() }))
		if topic, err := within(10*time.Second, got); err != nil || topic != down(wire.TopicDesired) {
			t.Errorf("%s: %q %v", server, topic, err)
		}
		done(c.Publish(up(wire.TopicEvent), 2, false, `{"name":"paho"}`))
		c.Disconnect(100)
	}
	if got := h.orders.seen(&h.orders.events); !slices.Equal(got, []string{"SN-1 paho", "SN-1 paho"}) {
		t.Errorf("arrived: %q", got)
	}
}

func TestPahoForGoSpeaks5Unchanged(t *testing.T) {
	h := lite(t, nil)
	m := h.enrolled(device.DefaultTenant, "SN-1")
	h.desire(m.d, 30)
	conn, err := tls.Dial("tcp", h.addr, m.config(wire.ALPNMQTT))
	h.must(err)
	got := make(chan *paho5.Publish, 10)
	c := paho5.NewClient(paho5.ClientConfig{
		Conn: conn, ClientID: "paho",
		OnPublishReceived: []func(paho5.PublishReceived) (bool, error){func(r paho5.PublishReceived) (bool, error) { got <- r.Packet; return true, nil }},
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ack, err := c.Connect(ctx, &paho5.Connect{KeepAlive: 30, ClientID: "paho", CleanStart: true})
	h.must(err)
	if ack.Properties.RetainAvailable || ack.Properties.SharedSubAvailable || *ack.Properties.ReceiveMaximum != wire.MQTTReceiveMaximum || ack.Properties.User.Get(wire.UserPropertyReconnect) == "" {
		t.Errorf("CONNACK: %+v", ack.Properties)
	}
	_, err = c.Subscribe(ctx, &paho5.Subscribe{Subscriptions: []paho5.SubscribeOptions{{Topic: down("#"), QoS: 1}}})
	h.must(err)
	if p, err := within(10*time.Second, got); err != nil || p.Topic != down(wire.TopicDesired) {
		t.Fatalf("%+v, %v", p, err)
	}
	body, _ := json.Marshal(wire.Report{Protocol: 1, Boot: "b", Sequence: 1, Instance: "i", Time: h.now()})
	res, err := c.Publish(ctx, &paho5.Publish{Topic: up(wire.TopicReport), QoS: 1, Payload: body, Properties: &paho5.PublishProperties{CorrelationData: []byte("x")}})
	if err != nil || res.ReasonCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if p, err := within(10*time.Second, got); err != nil || p.Topic != down(wire.TopicReport) || string(p.Properties.CorrelationData) != "x" {
		t.Errorf("%+v, %v", p, err)
	}
	res, err = c.Publish(ctx, &paho5.Publish{Topic: up(wire.TopicEvent), QoS: 2, Payload: []byte(`{"name":"twice"}`)})
	if err != nil || res.ReasonCode != 0 {
		t.Errorf("QoS 2: %+v, %v", res, err)
	}
	res, err = c.Publish(ctx, &paho5.Publish{Topic: up(wire.TopicReport), QoS: 1, Payload: []byte("{")})
	if err == nil || res == nil || res.ReasonCode != 0x99 {
		t.Errorf("a bad report: %+v, %v", res, err)
	}
	h.must(c.Disconnect(&paho5.Disconnect{}))
}

// toolOf finds a program of a Debian package.
func toolOf(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed: install Debian's package %s", name, debian)
	return ""
}

// TestDeviceInShellOfTheContractRuns takes the script out of docs/device-contract.md, as a reader would.
func TestDeviceInShellOfTheContractRuns(t *testing.T) {
	for name, debian := range map[string]string{"mosquitto_sub": "mosquitto-clients", "curl": "curl", "openssl": "openssl", "jq": "jq"} {
		toolOf(t, name, debian)
	}
	doc, err := os.ReadFile("../../docs/device-contract.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "### A device in shell, by MQTT")
	_, rest, _ = strings.Cut(rest, "```sh\n")
	script, _, ok := strings.Cut(rest, "```")
	if lines := strings.Count(strings.ReplaceAll(script, "\n\n", "\n"), "\n"); !ok || lines > 30 {
		t.Fatalf("the script has %d lines:\n%s", lines, script)
	}
	h := lite(t, nil)
	d := h.received(device.DefaultTenant, "SN-1")
	h.desire(d, 30)
	h.orders.give(d, "c1")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, "sh", "-c", script, "mqtt-device.sh", "127.0.0.1", portOf(h.addr), "SN-1", h.token(device.DefaultTenant, provisioning.NewToken{Device: d.ID}).String())
	cmd.Dir = t.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // mosquitto_sub, too
	cmd.WaitDelay = 5 * time.Second
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	h.must(cmd.Start())
	done := func() bool {
		epoch, _ := h.twin.Epoch(ctx, d.Num)
		return len(h.orders.seen(&h.orders.results)) == 1 && len(h.orders.seen(&h.orders.events)) == 2 && h.accepted(d) == epoch && epoch > 0
	}
	ok = comes(done)
	h.desire(d, 40) // and once more, while it is connected
	ok = ok && comes(done)
	cancel()
	_ = cmd.Wait() // it was killed
	if !ok {
		t.Errorf("events %q, results %q, accepted epoch %d; it said:\n%s", h.orders.seen(&h.orders.events), h.orders.seen(&h.orders.results), h.accepted(d), said.String())
	}
}

// accepted is the epoch that the device has reported.
func (h *house) accepted(d device.Device) int64 {
	var epoch int64
	err := h.db.QueryRowContext(context.Background(), "SELECT accepted FROM twin_session WHERE num = $1", d.Num).Scan(&epoch)
	if !errors.Is(err, sql.ErrNoRows) {
		h.must(err)
	}
	return epoch
}
