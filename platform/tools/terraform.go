package tools

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/files"
)

// oldestTerraform is the first minor of 1.x in which the variables of
// terraform/ may refer to each other in their validation. OpenTofu has had the
// same since its own 1.9.
const oldestTerraform = 9

// Terraform is a program that applies terraform/ (Terraform or OpenTofu) and the
// providers it is to use, which are built here and not downloaded.
type Terraform struct {
	// Program is its absolute path, Name terraform or tofu, Version for example
	// v1.11.4.
	Program, Name, Version string
	// ConfigFile is its CLI configuration: providers come from the mirror in this
	// checkout alone.
	ConfigFile string
}

// Environ is the environment to run the program in: the caller's own, with the
// provider configuration of this checkout and without questions.
func (t Terraform) Environ() []string {
	return terraformEnv("TF_CLI_CONFIG_FILE="+t.ConfigFile, "TF_IN_AUTOMATION=1")
}

// terraformEnv replaces what is there: a process started by exec sees the first
// of two equal names.
func terraformEnv(set ...string) []string {
	set = append(set, "CHECKPOINT_DISABLE=1")
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") }) {
			env = append(env, kv)
		}
	}
	return append(env, set...)
}

// EnsureTerraform finds terraform or tofu on PATH, 1.9 or newer, and else builds
// the pinned OpenTofu; then it builds the pinned providers. which picks one by
// name (terraform, tofu) or path; empty takes MARQUEE_TERRAFORM, and else the
// first that there is.
func EnsureTerraform(ctx context.Context, which string, progress Progress) (Terraform, error) {
	if which == "" {
		which = os.Getenv("MARQUEE_TERRAFORM")
	}
	t, err := findTerraform(ctx, which, progress)
	if err != nil {
		return Terraform{}, err
	}
	if err := mirrorProviders(ctx, &t, progress); err != nil {
		return Terraform{}, fmt.Errorf("make %s's providers available: %w", t.Name, err)
	}
	return t, nil
}

func findTerraform(ctx context.Context, which string, progress Progress) (Terraform, error) {
	if strings.ContainsRune(which, filepath.Separator) {
		return terraformAt(ctx, which)
	}
	switch which {
	case "", terraformName, OpenTofu:
	default:
		return Terraform{}, fmt.Errorf("no program is called %q: MARQUEE_TERRAFORM is %s, %s or a path", which, terraformName, OpenTofu)
	}
	root, err := Root()
	if err != nil {
		return Terraform{}, err
	}
	var reasons []error
	for _, name := range []string{terraformName, OpenTofu} {
		if which != "" && which != name {
			continue
		}
		onPath, err := exec.LookPath(name)
		// What was built here is judged by its pin, below.
		if err != nil || filepath.Dir(onPath) == folder(root) {
			reasons = append(reasons, fmt.Errorf("%s is not on PATH", name))
			continue
		}
		t, err := terraformAt(ctx, onPath)
		if err == nil {
			return t, nil
		}
		reasons = append(reasons, err)
	}
	if which == terraformName {
		return Terraform{}, fmt.Errorf("terraform 1.%d or newer: %w: put it on PATH, or use OpenTofu, which is built here: MARQUEE_TERRAFORM=tofu: %w",
			oldestTerraform, ErrMissing, errors.Join(reasons...))
	}
	tofu, err := Ensure(ctx, OpenTofu, progress)
	if err != nil {
		return Terraform{}, errors.Join(append(reasons, err)...)
	}
	return terraformAt(ctx, tofu)
}

// terraformAt judges one program.
func terraformAt(ctx context.Context, program string) (Terraform, error) {
	program, err := filepath.Abs(program)
	if err != nil {
		return Terraform{}, fmt.Errorf("find %s: %w", program, err)
	}
	version, err := versionOf(ctx, program, "version")
	if err != nil {
		return Terraform{}, err
	}
	var minor int
	if _, err := fmt.Sscanf(version, "v1.%d", &minor); err != nil || minor < oldestTerraform {
		return Terraform{}, fmt.Errorf("%w: %s is %s, 1.%d or newer is wanted", ErrMissing, program, version, oldestTerraform)
	}
	return Terraform{Program: program, Name: filepath.Base(program), Version: version}, nil
}

// provider is a Terraform provider that a module under tools/ pins.
type provider struct{ source, program string }

func providers() []provider {
	return []provider{
		{source: "dmacvicar/libvirt", program: "terraform-provider-libvirt"},
		{source: "hetznercloud/hcloud", program: "terraform-provider-hcloud"},
	}
}

// mirrorProviders lays the providers out as Terraform looks for them in a
// filesystem mirror, and writes the configuration that names the mirror.
func mirrorProviders(ctx context.Context, t *Terraform, progress Progress) error {
	root, err := Root()
	if err != nil {
		return err
	}
	mirror := filepath.Join(folder(root), "providers")
	if err := os.MkdirAll(mirror, 0o755); err != nil {
		return fmt.Errorf("make the mirror of providers: %w", err)
	}
	lock, err := files.Lock(ctx, filepath.Join(folder(root), ".providers.lock"), func() {
		progress.say("waiting for another process that prepares the providers")
	})
	if err != nil {
		return err
	}
	defer lock.Close()

	host, err := registryHost(ctx, t.Program, providers()[0].source)
	if err != nil {
		return err
	}
	for _, p := range providers() {
		built, err := Ensure(ctx, p.program, progress)
		if err != nil {
			return err
		}
		pin, err := readPin(root, p.program, p.program)
		if err != nil {
			return err
		}
		dir := filepath.Join(mirror, host, filepath.FromSlash(p.source), strings.TrimPrefix(pin.version, "v"), runtime.GOOS+"_"+runtime.GOARCH)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the mirror of providers: %w", err)
		}
		if err := symlink(built, filepath.Join(dir, p.program+"_"+pin.version)); err != nil {
			return err
		}
	}
	t.ConfigFile = filepath.Join(folder(root), "terraform.tfrc")
	text := fmt.Sprintf("disable_checkpoint = true\n\nprovider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", mirror)
	if have, err := os.ReadFile(t.ConfigFile); err == nil && string(have) == text {
		return nil
	}
	return files.Replace(t.ConfigFile, []byte(text), 0o644)
}

// symlink makes or corrects a link.
func symlink(to, at string) error {
	if have, err := os.Readlink(at); err == nil && have == to {
		return nil
	}
	if err := os.RemoveAll(at); err != nil {
		return fmt.Errorf("replace %s: %w", at, err)
	}
	if err := os.Symlink(to, at); err != nil {
		return fmt.Errorf("link a provider into the mirror: %w", err)
	}
	return nil
}

// registryHost is the host under which a program looks for a provider that is
// named without one: Terraform's and OpenTofu's differ.
func registryHost(ctx context.Context, program, source string) (string, error) {
	dir, err := os.MkdirTemp("", "marquee-providers")
	if err != nil {
		return "", fmt.Errorf("ask %s for its registry: %w", program, err)
	}
	defer os.RemoveAll(dir)
	text := fmt.Sprintf("terraform {\n  required_providers {\n    one = {\n      source = %q\n    }\n  }\n}\n", source)
	if err := os.WriteFile(filepath.Join(dir, "main.tf"), []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("ask %s for its registry: %w", program, err)
	}
	limited, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, program, "providers")
	cmd.Dir = dir
	cmd.Env = terraformEnv("TF_CLI_CONFIG_FILE="+os.DevNull, "TF_DATA_DIR="+filepath.Join(dir, "data"))
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ask %s for its registry: %w: %s", program, errors.Join(err, limited.Err()), firstLine(out, err))
	}
	m := regexp.MustCompile(`provider\[([^/\]]+)/` + regexp.QuoteMeta(source) + `\]`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("ask %s for its registry: %q does not name it", program, strings.TrimSpace(string(out)))
	}
	return string(m[1]), nil
}
