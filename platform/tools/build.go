package tools

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/platform/files"
)

// GoEnv is the environment for building what a checkout pins: the caller's,
// without the settings that would change what comes out (target, flags,
// workspace), so that the same sources give the same program everywhere.
// Settings of the toolchain itself and of module downloads stay.
func GoEnv(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "GOFLAGS", "GOWORK", "GOOS", "GOARCH", "GOAMD64", "GOARM", "GOARM64", "GOBIN", "GOEXPERIMENT", "CGO_ENABLED", "GO111MODULE", "GODEBUG":
			continue
		}
		env = append(env, kv)
	}
	return append(env, extra...)
}

func buildGo(ctx context.Context, root, name string, progress Progress) error {
	t, _ := goToolNamed(name)
	p, err := readPin(root, t.module, name)
	if err != nil {
		return err
	}
	out := filepath.Join(folder(root), name)
	temp, err := tempBeside(out)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	what := fmt.Sprintf("building %s %s (about %s from cold)", name, strings.TrimPrefix(p.version, "v"), t.cold)
	env := GoEnv("GOWORK=off", "GOFLAGS=-trimpath")
	if !t.cgo {
		env = append(env, "CGO_ENABLED=0")
	}
	if err := goBuild(ctx, progress, what, filepath.Join(root, "tools", t.module), env, "-o", temp, p.importPath); err != nil {
		return err
	}
	// The stamp goes first and last: a stale stamp must never stand beside a new
	// program, and a program without one is judged by its version.
	_ = os.Remove(out + ".version")
	if err := os.Rename(temp, out); err != nil {
		return fmt.Errorf("put %s in place: %w", name, err)
	}
	return files.Replace(out+".version", []byte(p.stamp+"\n"), 0o644)
}

// goBuild runs go build in dir, and says what it does while it does it.
func goBuild(ctx context.Context, progress Progress, what, dir string, env []string, args ...string) error {
	gobin, err := exec.LookPath("go")
	if err != nil {
		return fmt.Errorf("%s: go is not on PATH: install Go 1.26, or put the tool itself on PATH", what)
	}
	cmd := exec.CommandContext(ctx, gobin, append([]string{"build", "-buildvcs=false", "-ldflags=-s -w"}, args...)...)
	cmd.Dir, cmd.Env = dir, env
	return run(ctx, cmd, progress, what)
}

// Group has a command run in a process group of its own, so that when its context
// ends its children end, too.
func Group(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
}

// run runs a command to its end in a process group of its own. Its output appears
// in the error only.
func run(ctx context.Context, cmd *exec.Cmd, progress Progress, what string) error {
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	Group(cmd)
	stop := ticking(progress, what)
	err := cmd.Run()
	stop()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	default:
		return fmt.Errorf("%s: %w\n%s", what, err, strings.TrimSpace(output.String()))
	}
}

// ticking repeats a line with the seconds so far until the returned function is
// called, which waits for the last one.
func ticking(progress Progress, what string) (stop func()) {
	progress.say("%s…", what)
	start := time.Now()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				progress.say("%s… %d s", what, int(time.Since(start).Seconds()))
			}
		}
	}()
	return func() { close(done); <-ended }
}

// tempBeside names a file or folder beside out that becomes it by a rename, and
// removes those that killed builds left. The caller holds the tool's lock.
func tempBeside(out string) (string, error) {
	dir, base := filepath.Split(out)
	left, err := filepath.Glob(filepath.Join(dir, "."+base+".building*"))
	if err != nil {
		return "", err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("remove what an interrupted build left: %w", err)
		}
	}
	return filepath.Join(dir, fmt.Sprintf(".%s.building%d", base, os.Getpid())), nil
}

// stampOf is a hash over the contents of files.
func stampOf(files ...string) (string, error) {
	h := sha256.New()
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read what a tool is pinned by: %w", err)
		}
		fmt.Fprintf(h, "%d\n", len(text))
		h.Write(text)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
