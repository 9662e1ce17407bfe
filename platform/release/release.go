// Package release builds this repository's programs, and the servers that its
// jobs run, into folders named after their contents, so that a job that is
// reverted runs the very program it ran before, and the same code is never rolled
// twice.
package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/tools"
)

// Binary is one built program.
type Binary struct {
	Name    string
	Path    string // absolute: …/.marquee/releases/<version>/<name>
	Version string // the first 12 hex digits of SHA256
	SHA256  string // of its contents, 64 hex digits
	Package string // the folder it was built from, relative to the checkout
	New     bool   // it was not there before
}

// Folder is where a checkout keeps its releases.
func Folder(root string) string { return filepath.Join(root, ".marquee", "releases") }

// servers are the tools that jobs run, by the name that job files know them by.
func servers() map[string]string { return map[string]string{"natsd": tools.NatsServer} }

// Packages are the programs of a checkout by name, each with its folder relative
// to root: every service's and the platform's cmd folders that end in d, those
// of the end-to-end tests, the player, marquee itself, and natsd, which is
// nats-server as tools/ pins it.
func Packages(root string) (map[string]string, error) {
	found := map[string]string{}
	for _, pattern := range []string{
		"services/*/cmd/*d/main.go", "services/*/cmd/player/main.go", "platform/cmd/*d/main.go", "e2e/cmd/*d/main.go", "platform/cmd/marquee/main.go",
	} {
		mains, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		for _, main := range mains {
			dir := filepath.Dir(main)
			name := filepath.Base(dir)
			rel, err := filepath.Rel(root, dir)
			if err != nil {
				return nil, err
			}
			if other, twice := found[name]; twice {
				return nil, fmt.Errorf("two programs are called %s: %s and %s", name, other, rel)
			}
			found[name] = rel
		}
	}
	for name, tool := range servers() {
		dir := filepath.Join("tools", tool)
		if _, err := os.Stat(filepath.Join(root, dir, "go.mod")); err == nil {
			found[name] = dir
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no programs below %s: is it a checkout of Marquee?", root)
	}
	return found, nil
}

// CompileError carries what the compiler said.
type CompileError struct {
	Package string
	Output  string
}

func (e *CompileError) Error() string {
	return fmt.Sprintf("%s does not compile:\n%s", e.Package, e.Output)
}

// Build builds the named programs, all there are when none is named, and returns
// them by name. A program that does not compile is a *CompileError; the others
// are not waited for. The environment's build settings have no influence on what
// comes out.
func Build(ctx context.Context, names ...string) (map[string]Binary, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	all, err := Packages(root)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		names = slices.Collect(maps.Keys(all))
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	for _, name := range names {
		if all[name] == "" {
			return nil, fmt.Errorf("no program is called %q: there are %s", name, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
		}
	}
	if err := os.MkdirAll(Folder(root), 0o755); err != nil {
		return nil, fmt.Errorf("make the releases' folder: %w", err)
	}
	temp, err := os.MkdirTemp(Folder(root), ".building-")
	if err != nil {
		return nil, fmt.Errorf("make the releases' folder: %w", err)
	}
	defer os.RemoveAll(temp)

	built := make(map[string]Binary, len(names))
	for _, name := range names {
		var err error
		if tool := servers()[name]; tool != "" {
			err = take(ctx, tool, filepath.Join(temp, name))
		} else {
			err = compile(ctx, root, all[name], filepath.Join(temp, name))
		}
		if err != nil {
			return nil, err
		}
		b, err := store(root, temp, name)
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", name, err)
		}
		b.Package = all[name]
		built[name] = b
	}
	return built, nil
}

// compile runs go build, which uses all processors for one program and the build
// cache between them: running several at once gains nothing.
func compile(ctx context.Context, root, pkg, out string) error {
	gobin, err := exec.LookPath("go")
	if err != nil {
		return fmt.Errorf("build %s: go is not on PATH: install Go 1.26", pkg)
	}
	cmd := exec.CommandContext(ctx, gobin, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, "./"+pkg)
	cmd.Dir = root
	cmd.Env = tools.GoEnv("CGO_ENABLED=0", "GOFLAGS=", "GOWORK="+filepath.Join(root, "go.work"))
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	tools.Group(cmd)
	switch err := cmd.Run(); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("build %s: %w", pkg, ctx.Err())
	case output.Len() == 0:
		return fmt.Errorf("build %s: %w", pkg, err)
	default:
		return &CompileError{Package: pkg, Output: strings.TrimSpace(output.String())}
	}
}

// take copies a tool, which is made when it is missing.
func take(ctx context.Context, tool, out string) error {
	path, err := tools.Ensure(ctx, tool, nil)
	if err != nil {
		return fmt.Errorf("prepare %s: %w", tool, err)
	}
	from, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("copy %s: %w", tool, err)
	}
	defer from.Close()
	to, err := os.Create(out)
	if err != nil {
		return fmt.Errorf("copy %s: %w", tool, err)
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", tool, err)
	}
	return nil
}

// store moves a built program to the folder of its contents.
func store(root, temp, name string) (Binary, error) {
	from := filepath.Join(temp, name)
	f, err := os.Open(from)
	if err != nil {
		return Binary{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return Binary{}, err
	}
	digest := hex.EncodeToString(h.Sum(nil))
	version := digest[:12]
	b := Binary{Name: name, Version: version, SHA256: digest, Path: filepath.Join(Folder(root), version, name)}
	if info, err := os.Stat(b.Path); err == nil && info.Mode().IsRegular() {
		// The same contents. Touched, so that Prune counts it as recent.
		now := time.Now()
		return b, os.Chtimes(b.Path, now, now)
	}
	if err := os.MkdirAll(filepath.Dir(b.Path), 0o755); err != nil {
		return Binary{}, err
	}
	if err := os.Chmod(from, 0o755); err != nil {
		return Binary{}, err
	}
	b.New = true
	return b, os.Rename(from, b.Path)
}

// kept is how many builds of each program survive Prune in any case: the newest
// and what a deployment may revert to.
const kept = 3

// Prune removes old releases: of each program the newest few stay, and those for
// which keep says so, which must be every one that a job may still start. It
// returns the removed paths. Leftovers of killed builds go too.
func Prune(keep func(path string) bool) ([]string, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(Folder(root), "[0-9a-f]*", "*"))
	if err != nil {
		return nil, err
	}
	type build struct {
		path string
		when time.Time
	}
	byName := map[string][]build{}
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at the releases: %w", err)
		}
		byName[filepath.Base(path)] = append(byName[filepath.Base(path)], build{path, info.ModTime()})
	}
	var removed []string
	for _, builds := range byName {
		slices.SortFunc(builds, func(a, b build) int { return b.when.Compare(a.when) })
		for i, b := range builds {
			if i < kept || keep(b.path) {
				continue
			}
			if err := os.Remove(b.path); err != nil {
				return removed, fmt.Errorf("remove an old release: %w", err)
			}
			removed = append(removed, b.path)
			// Stays when another program of the same version prefix is in it.
			_ = os.Remove(filepath.Dir(b.path))
		}
	}
	return removed, pruneBuilding(root)
}

// stale is how old the folder of a build must be to be that of a killed one.
const stale = time.Hour

func pruneBuilding(root string) error {
	left, err := filepath.Glob(filepath.Join(Folder(root), ".building-*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < stale {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what a killed build left: %w", err)
		}
	}
	return nil
}
