// Package tools finds the programs that Marquee runs but does not contain
// (Nomad, Consul, Postgres, Envoy, CNI plugins, Terraform, code generators), and makes the
// missing ones inside the checkout without installing anything.
package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/mod/modfile"

	"github.com/marquee-ads/marquee/platform/files"
)

// The names that Find and Ensure know. All are single programs but Postgres and
// CNI, which are folders of programs.
const (
	Nomad           = "nomad"
	Consul          = "consul"
	Postgres        = "postgres"
	Envoy           = "envoy"
	CNI             = "cni"
	Buf             = "buf"
	Sqlc            = "sqlc"
	GolangciLint    = "golangci-lint"
	Gotestsum       = "gotestsum"
	ProtocGenGo     = "protoc-gen-go"
	ProtocGenGoGRPC = "protoc-gen-go-grpc"
	ProtocGenREST   = "protoc-gen-grpc-gateway"
	OpenTofu        = "tofu"
)

// terraformName is what only PATH can give; see EnsureTerraform.
const terraformName = "terraform"

// Names are all that Find and Ensure know by name, but for the providers of
// Terraform, which EnsureTerraform makes.
func Names() []string {
	return []string{
		Nomad, Consul, Postgres, NatsServer, Envoy, CNI, Buf, Sqlc, GolangciLint, Gotestsum,
		terraformName, OpenTofu, ProtocGenGo, ProtocGenGoGRPC, ProtocGenREST,
	}
}

// ErrMissing says that a tool is neither built nor on PATH in a version that fits.
var ErrMissing = errors.New("tool is missing")

// versionTimeout bounds `<tool> version`. Under heavy load a 180 MB binary that
// is not in the page cache takes seconds to start.
const versionTimeout = 20 * time.Second

// Progress receives a line when a long step begins and again every few seconds
// while it runs, with the seconds so far at its end. Nil is silent.
type Progress func(line string)

func (p Progress) say(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}

// goTool is a program that a module under tools/ pins.
type goTool struct {
	module  string   // folder under tools/
	version []string // arguments that print the version
	cold    string   // how long a build from an empty cache takes on two cores
	cgo     bool     // wants C where a compiler is present
}

func goToolNamed(name string) (goTool, bool) {
	switch name {
	case Nomad:
		// The exec driver enters namespaces in C; without a C compiler go builds
		// the rest, which is all that raw_exec needs.
		return goTool{module: name, version: []string{"version"}, cold: "3 minutes", cgo: true}, true
	case Consul:
		return goTool{module: name, version: []string{"version"}, cold: "3 minutes"}, true
	case NatsServer:
		return natsServer(), true
	case Buf, Gotestsum:
		return goTool{module: name, version: []string{"--version"}, cold: "2 minutes"}, true
	case Sqlc, GolangciLint:
		return goTool{module: name, version: []string{"version"}, cold: "2 minutes"}, true
	case OpenTofu:
		return goTool{module: "opentofu", version: []string{"version"}, cold: "4 minutes"}, true
	case "terraform-provider-libvirt", "terraform-provider-hcloud":
		// A provider cannot say its version: it is judged by its stamp alone.
		return goTool{module: name, version: []string{"--version"}, cold: "1 minute"}, true
	case ProtocGenREST:
		return goTool{module: name, version: []string{"--version"}, cold: "30 seconds"}, true
	case ProtocGenGo, ProtocGenGoGRPC:
		return goTool{module: "protoc-gen", version: []string{"--version"}, cold: "30 seconds"}, true
	}
	return goTool{}, false
}

// Root is the folder of the checkout: MARQUEE_ROOT, or the nearest folder at or
// above the working directory that holds go.work.
func Root() (string, error) {
	if root := os.Getenv("MARQUEE_ROOT"); root != "" {
		if _, err := os.Stat(filepath.Join(root, "go.work")); err != nil {
			return "", fmt.Errorf("MARQUEE_ROOT is not a checkout of Marquee: %w", err)
		}
		return filepath.Abs(root)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.work")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no go.work at or above %s: run this inside a checkout of Marquee, or set MARQUEE_ROOT", dir)
		}
	}
}

// Find is the absolute path of a tool that is there already: the one made for
// this checkout, else one on PATH whose version fits the pinned one. For
// Postgres it is the folder that holds initdb, postgres and pg_ctl, for CNI the
// folder of the plugins. The error is ErrMissing when there is none.
func Find(ctx context.Context, name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	switch name {
	case Postgres:
		return findPostgres(ctx, root)
	case Envoy:
		return findEnvoy(ctx, root)
	case CNI:
		return findCNI(root)
	}
	t, ok := goToolNamed(name)
	if !ok {
		return "", fmt.Errorf("no tool is called %q: there are %s", name, strings.Join(Names(), ", "))
	}
	pin, err := readPin(root, t.module, name)
	if err != nil {
		return "", err
	}
	return findGo(ctx, root, name, t, pin)
}

// Ensure is Find, and makes the tool when it is missing. Any number of
// processes may call it at once: one makes it, the others wait. For terraform it
// is the program that EnsureTerraform gives.
func Ensure(ctx context.Context, name string, progress Progress) (string, error) {
	if name == terraformName {
		t, err := EnsureTerraform(ctx, "", progress)
		return t.Program, err
	}
	found, err := Find(ctx, name)
	if err == nil || !errors.Is(err, ErrMissing) {
		return found, err
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(folder(root), 0o755); err != nil {
		return "", fmt.Errorf("make the tools folder: %w", err)
	}
	lock, err := files.Lock(ctx, filepath.Join(folder(root), "."+name+".lock"), func() {
		progress.say("waiting for another process that prepares %s", name)
	})
	if err != nil {
		return "", fmt.Errorf("prepare %s: %w", name, err)
	}
	defer lock.Close()
	// Whoever held the lock before has probably made it.
	found, err = Find(ctx, name)
	if err == nil || !errors.Is(err, ErrMissing) {
		return found, err
	}
	switch name {
	case Postgres:
		err = unpackPostgres(ctx, root, progress)
	case Envoy:
		err = fetchEnvoy(ctx, root, progress)
	case CNI:
		err = buildCNI(ctx, root, progress)
	default:
		err = buildGo(ctx, root, name, progress)
	}
	if err != nil {
		return "", err
	}
	return Find(ctx, name)
}

// folder holds everything that Ensure makes.
func folder(root string) string { return filepath.Join(root, ".marquee", "tools") }

// pin is the version that a module under tools/ names for a program.
type pin struct {
	importPath string // main package
	version    string // of the module that holds it, for example v1.11.3
	stamp      string // changes when anything in go.mod or go.sum does
}

func readPin(root, module, program string) (pin, error) {
	file := filepath.Join(root, "tools", module, "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return pin{}, fmt.Errorf("read the pinned version of %s: %w", program, err)
	}
	mod, err := modfile.Parse(file, text, nil)
	if err != nil {
		return pin{}, fmt.Errorf("read the pinned version of %s: %w", program, err)
	}
	stamp, err := stampOf(file, filepath.Join(filepath.Dir(file), "go.sum"))
	if err != nil {
		return pin{}, err
	}
	for _, t := range mod.Tool {
		if programOf(t.Path) != program {
			continue
		}
		best := pin{importPath: t.Path, stamp: stamp}
		longest := -1
		for _, r := range mod.Require {
			if (t.Path == r.Mod.Path || strings.HasPrefix(t.Path, r.Mod.Path+"/")) && len(r.Mod.Path) > longest {
				longest, best.version = len(r.Mod.Path), r.Mod.Version
			}
		}
		if longest >= 0 {
			return best, nil
		}
	}
	return pin{}, fmt.Errorf("%s has no tool %s with a required version", file, program)
}

func findGo(ctx context.Context, root, name string, t goTool, p pin) (string, error) {
	own := filepath.Join(folder(root), name)
	var reason string
	if info, err := os.Stat(own); err == nil && info.Mode().IsRegular() {
		switch stamp, err := os.ReadFile(own + ".version"); {
		case err == nil && strings.TrimSpace(string(stamp)) == p.stamp:
			return own, nil
		case err == nil:
			reason = "its pinned module has changed since it was built"
		default:
			// Built by other means: adopted when it is the pinned version. The
			// stamp is a note for later, so that failing to write it is harmless.
			found, err := versionOf(ctx, own, t.version...)
			if err != nil {
				return "", err
			}
			if found == p.version {
				_ = files.Replace(own+".version", []byte(p.stamp+"\n"), 0o644)
				return own, nil
			}
			reason = fmt.Sprintf("%s is %s", own, found)
		}
	}
	if onPath, err := exec.LookPath(name); err == nil {
		if onPath, err = filepath.Abs(onPath); err == nil && onPath != own {
			found, err := versionOf(ctx, onPath, t.version...)
			if err != nil {
				return "", err
			}
			if minor(found) == minor(p.version) {
				return onPath, nil
			}
			reason = fmt.Sprintf("%s is %s", onPath, found)
		}
	}
	if reason == "" {
		reason = "not built yet and not on PATH"
	}
	return "", fmt.Errorf("%s %s: %w: %s", name, p.version, ErrMissing, reason)
}

var versionPattern = regexp.MustCompile(`\bv?(\d+\.\d+(\.\d+)?)`)

// versionOf runs a program with the arguments that make it print its version and
// returns the first version in its answer as vMAJOR.MINOR[.PATCH].
func versionOf(ctx context.Context, program string, args ...string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, program, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		// A program that cannot say its version does not fit; only the
		// caller's end is an error.
		if ctx.Err() != nil {
			return "", fmt.Errorf("ask %s for its version: %w", program, ctx.Err())
		}
		return "unusable (" + firstLine(out, err) + ")", nil // the answer says so
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return "of an unknown version", nil
	}
	return "v" + string(m[1]), nil
}

// minor is the part of a version that a program on PATH must share with the
// pinned one: command-line flags and APIs are kept within it.
func minor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return version
	}
	return parts[0] + "." + parts[1]
}

func firstLine(out []byte, err error) string {
	text := strings.TrimSpace(string(out))
	if text == "" {
		return err.Error()
	}
	line, _, _ := strings.Cut(text, "\n")
	return line
}
