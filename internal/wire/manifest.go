package wire

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ComponentFiles is the component type of an archive (tar, tar.zst) that is unpacked into a versioned
// directory and switched by an atomic link.
const ComponentFiles = "files"

// ComponentTypes lists the types that this build understands.
var ComponentTypes = []string{ComponentFiles}

// Bounds of a release manifest. Both the signing operator and the agent refuse more.
const (
	MaxManifestBytes     = 256 << 10
	MaxComponents        = 32
	MaxCommands          = 16   // of one list
	MaxArguments         = 64   // of one command
	MaxArgumentBytes     = 4096 // of one argument
	MaxCommandSeconds    = 3600
	MaxHealthSeconds     = 3600
	MaxNotesBytes        = 16 << 10
	MaxArtifactBytes     = 16 << 30
	defaultHealthSeconds = 60
	defaultTimeout       = 30
)

var (
	releaseNamePattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)
	releaseVersionPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.+_-]{0,62}[A-Za-z0-9])?$`)
)

// CheckReleaseName checks the name of a release or a component. It becomes a directory's name on the
// device, so it has no slash and no "..".
func CheckReleaseName(s string) error {
	if !releaseNamePattern.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf("name %.80q: use 1 to 64 lower case letters, digits and inner . _ - without \"..\"", s)
	}
	return nil
}

// CheckReleaseVersion checks the version of a release or a component, by the same rule.
func CheckReleaseVersion(s string) error {
	if !releaseVersionPattern.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf("version %.80q: use 1 to 64 letters, digits and inner . + _ - without \"..\"", s)
	}
	return nil
}

// ManifestTarget is the name of a release's manifest among the TUF targets.
func ManifestTarget(name, version string) string {
	return "releases/" + name + "/" + version + ".json"
}

// ArtifactTarget is the name of a component's archive among the TUF targets. It holds the start of the
// content's SHA-256, so that other content never takes its place.
func ArtifactTarget(component, version string, sha256 Hash) string {
	return "artifacts/" + component + "/" + version + "/" + string(sha256)[:16] + ".tar.zst"
}

// Mistake is one thing that is wrong with a manifest.
type Mistake struct{ Field, Message string }

// Check returns all mistakes of the manifest; none means that it may be signed and installed.
func (m ReleaseManifest) Check() []Mistake {
	c := manifestCheck{}
	c.err("name", CheckReleaseName(m.Name))
	c.err("version", CheckReleaseVersion(m.Version))
	if len(m.Notes) > MaxNotesBytes {
		c.add("notes", "%d bytes: at most %d", len(m.Notes), MaxNotesBytes)
	}
	switch n := len(m.Components); {
	case n == 0:
		c.add("components", "a release needs at least one component")
	case n > MaxComponents:
		c.add("components", "%d components: at most %d", n, MaxComponents)
		return c.mistakes
	}
	for i, comp := range m.Components {
		c.component(fmt.Sprintf("components[%d]", i), comp)
		for j, earlier := range m.Components[:i] {
			if earlier.Name == comp.Name && overlap(earlier.Architectures, comp.Architectures) && overlap(earlier.Models, comp.Models) {
				c.add(fmt.Sprintf("components[%d].name", i), "%q stands in components[%d] too and both fit the same devices", comp.Name, j)
			}
		}
	}
	return c.mistakes
}

// overlap tells whether a device can fit both lists; an empty one fits all.
func overlap(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

type manifestCheck struct{ mistakes []Mistake }

func (c *manifestCheck) add(field, format string, args ...any) {
	c.mistakes = append(c.mistakes, Mistake{Field: field, Message: fmt.Sprintf(format, args...)})
}

func (c *manifestCheck) err(field string, err error) {
	if err != nil {
		c.add(field, "%v", err)
	}
}

func (c *manifestCheck) component(at string, comp Component) {
	c.err(at+".name", CheckReleaseName(comp.Name))
	c.err(at+".version", CheckReleaseVersion(comp.Version))
	if !slices.Contains(ComponentTypes, comp.Type) {
		c.add(at+".type", "component type %q is unknown: want %s", comp.Type, strings.Join(ComponentTypes, ", "))
	}
	if !strings.HasPrefix(comp.Artifact, "artifacts/") || !safeTarget(comp.Artifact) {
		c.add(at+".artifact", "%.120q is no target below artifacts/", comp.Artifact)
	}
	for _, list := range [][]string{comp.Architectures, comp.Models} {
		if len(list) > 64 || slices.Contains(list, "") {
			c.add(at, "architectures and models have at most 64 names, none of them empty")
		}
	}
	if s := comp.Commands.HealthSeconds; s < 0 || s > MaxHealthSeconds {
		c.add(at+".commands.health_seconds", "%d: want 0 to %d", s, MaxHealthSeconds)
	}
	c.commands(at+".commands.pre", comp.Commands.Pre)
	c.commands(at+".commands.post", comp.Commands.Post)
	c.commands(at+".commands.health", comp.Commands.Health)
}

func (c *manifestCheck) commands(at string, list []Command) {
	if len(list) > MaxCommands {
		c.add(at, "%d commands: at most %d", len(list), MaxCommands)
		return
	}
	for i, cmd := range list {
		here := fmt.Sprintf("%s[%d]", at, i)
		if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
			c.add(here+".argv", "names no program")
		}
		if len(cmd.Argv) > MaxArguments {
			c.add(here+".argv", "%d arguments: at most %d", len(cmd.Argv), MaxArguments)
		}
		for _, arg := range cmd.Argv {
			if len(arg) > MaxArgumentBytes || strings.ContainsRune(arg, 0) {
				c.add(here+".argv", "an argument has at most %d bytes and no zero byte", MaxArgumentBytes)
				break
			}
		}
		if s := cmd.TimeoutSeconds; s < 0 || s > MaxCommandSeconds {
			c.add(here+".timeout_seconds", "%d: want 0 to %d", s, MaxCommandSeconds)
		}
	}
}

// safeTarget tells whether a target's name is a clean relative path.
func safeTarget(name string) bool {
	if len(name) > 300 || strings.ContainsAny(name, "\\\x00?#%") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// SafeTarget checks the form of a TUF target's name: a relative path without empty parts, "." and "..".
func SafeTarget(name string) error {
	if !safeTarget(name) {
		return fmt.Errorf("target name %.120q is not a clean relative path", name)
	}
	return nil
}

// Fits tells whether the component is meant for a machine; product is Machine.Product of its inventory.
func (c Component) Fits(architecture, product string) bool {
	return (len(c.Architectures) == 0 || slices.Contains(c.Architectures, architecture)) &&
		(len(c.Models) == 0 || slices.ContainsFunc(c.Models, func(m string) bool { return strings.EqualFold(m, product) }))
}

// Timeout is how many seconds the command may take.
func (c Command) Timeout() int {
	if c.TimeoutSeconds == 0 {
		return defaultTimeout
	}
	return c.TimeoutSeconds
}

// HealthTimeout is how many seconds the health commands may take to pass.
func (c ComponentCommands) HealthTimeout() int {
	if c.HealthSeconds == 0 {
		return defaultHealthSeconds
	}
	return c.HealthSeconds
}
