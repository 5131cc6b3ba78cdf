package packaging_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"

	steward "steward/internal/cli"
)

// kinds are the Kubernetes objects that our manifests may have, as its API defines them.
var kinds = map[string]func() any{
	"v1/ConfigMap":                       func() any { return &corev1.ConfigMap{} },
	"v1/Service":                         func() any { return &corev1.Service{} },
	"apps/v1/StatefulSet":                func() any { return &appsv1.StatefulSet{} },
	"networking.k8s.io/v1/Ingress":       func() any { return &networkingv1.Ingress{} },
	"networking.k8s.io/v1/NetworkPolicy": func() any { return &networkingv1.NetworkPolicy{} },
	"policy/v1/PodDisruptionBudget":      func() any { return &policyv1.PodDisruptionBudget{} },
}

func manifests(t *testing.T) (objects []any) {
	t.Helper()
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range bytes.Split(data, []byte("\n---\n")) {
			var head struct{ APIVersion, Kind string }
			if err := yaml.Unmarshal(text, &head); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			make, known := kinds[head.APIVersion+"/"+head.Kind]
			if !known {
				t.Fatalf("%s: %s/%s is not known", file, head.APIVersion, head.Kind)
			}
			object := make()
			if err := yaml.UnmarshalStrict(text, object); err != nil {
				t.Errorf("%s: %s: %v", file, head.Kind, err)
			}
			objects = append(objects, object)
		}
	}
	return objects
}

func TestManifestsAreWhatKubernetesTakes(t *testing.T) {
	ports := map[string]bool{}
	var set *appsv1.StatefulSet
	var settings *corev1.ConfigMap
	objects := manifests(t)
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.StatefulSet:
			set = o
			for _, p := range o.Spec.Template.Spec.Containers[0].Ports {
				ports[p.Name] = true
			}
		case *corev1.ConfigMap:
			settings = o
		}
	}
	if set == nil || settings == nil {
		t.Fatal("no nodes or no settings")
	}
	pod := set.Spec.Template
	// what the restricted Pod Security Standard asks for
	c, p := pod.Spec.Containers[0].SecurityContext, pod.Spec.SecurityContext
	if !*p.RunAsNonRoot || p.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || *c.AllowPrivilegeEscalation ||
		len(c.Capabilities.Drop) != 1 || c.Capabilities.Drop[0] != "ALL" || !*c.ReadOnlyRootFilesystem {
		t.Error("the nodes may do more than the restricted profile allows")
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			for label, value := range o.Spec.Selector {
				if pod.Labels[label] != value {
					t.Errorf("service %s selects %s=%s, which no node has", o.Name, label, value)
				}
			}
			for _, p := range o.Spec.Ports {
				if !ports[p.TargetPort.StrVal] {
					t.Errorf("service %s leads to port %q, which no node has", o.Name, p.TargetPort.StrVal)
				}
			}
		case *networkingv1.NetworkPolicy:
			for _, rule := range o.Spec.Ingress {
				for _, p := range rule.Ports {
					if !ports[p.Port.StrVal] {
						t.Errorf("the network policy names port %q, which no node has", p.Port.StrVal)
					}
				}
			}
		}
	}
	checkSettings(t, settings.Data)
}

func TestComposeFileIsWhatComposeTakes(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{"compose.yaml"}, cli.WithEnvFiles("compose.env.example"), cli.WithDotEnv,
		cli.WithEnv([]string{"POSTGRES_PASSWORD=p", "S3_PASSWORD=s"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	nodes := 0
	for name, s := range project.Services {
		if !strings.HasPrefix(name, "node") {
			continue
		}
		nodes++
		settings := map[string]string{}
		for k, v := range s.Environment {
			settings[k] = *v
		}
		checkSettings(t, settings)
		if settings["STEWARD_BUS_ADVERTISE"] != name+":6222" || settings["STEWARD_NODE_NAME"] != name {
			t.Errorf("%s calls itself %s at %s", name, settings["STEWARD_NODE_NAME"], settings["STEWARD_BUS_ADVERTISE"])
		}
	}
	if nodes != 3 {
		t.Errorf("%d nodes", nodes)
	}
	balancer, err := os.ReadFile("haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"node1:8443", "node2:8883", "node3:8080"} {
		if !strings.Contains(string(balancer), node) {
			t.Errorf("the balancer doesn't know %s", node)
		}
	}
}

// checkSettings holds variables of the environment against the flags of the server.
func checkSettings(t *testing.T, settings map[string]string) {
	t.Helper()
	help := serverHelp(t)
	for name := range settings {
		flag, ours := strings.CutPrefix(name, "STEWARD_")
		if !ours {
			continue
		}
		flag = "--" + strings.ReplaceAll(strings.ToLower(flag), "_", "-") + " "
		if !strings.Contains(help, flag) {
			t.Errorf("the server has no flag %sfor %s", flag, name)
		}
	}
}

func serverHelp(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	if code := steward.Main("test", []string{"server", "--help"}, strings.NewReader(""), &out, &out); code != 0 {
		t.Fatalf("server --help: %d\n%s", code, out.String())
	}
	return out.String()
}
