package vms

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/platform/tools"
)

// How long Terraform may take. An apply of five machines takes 15 s; now and
// then the libvirt provider hangs for ever while it reads, which a second run
// does not.
const (
	initLimit    = time.Minute
	planLimit    = 90 * time.Second
	applyLimit   = 4 * time.Minute
	destroyLimit = time.Minute
	// graceLimit is for Terraform to save its state when it is interrupted.
	graceLimit = 30 * time.Second
)

// errTook says that Terraform was ended because it took too long.
var errTook = errors.New("took too long")

// terraform runs Terraform for one environment, whose state and data are in dir.
type terraform struct {
	program tools.Terraform
	chdir   string // the configuration
	dir     string
	held    *os.File // the environment's lock, which is Terraform's as long as it runs
	say     func(string)
}

func (t *terraform) stateFile() string { return filepath.Join(t.dir, "terraform.tfstate") }
func (t *terraform) variables() string { return filepath.Join(t.dir, "terraform.tfvars.json") }

// files are the arguments of the commands that read state and variables.
func (t *terraform) files() []string {
	return []string{"-input=false", "-no-color", "-lock-timeout=10s", "-state=" + t.stateFile(), "-var-file=" + t.variables()}
}

func (t *terraform) init(ctx context.Context) error {
	_, err := t.run(ctx, initLimit, "init", "-input=false", "-no-color")
	return err
}

// apply makes what is missing; extra are further arguments.
func (t *terraform) apply(ctx context.Context, extra ...string) error {
	_, err := t.run(ctx, applyLimit, "apply", append(append(t.files(), "-auto-approve"), extra...)...)
	return err
}

// changes is the plan's text when an apply would change something, else empty.
func (t *terraform) changes(ctx context.Context) (string, error) {
	out, err := t.run(ctx, planLimit, "plan", append(t.files(), "-detailed-exitcode")...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		text := string(out)
		if at := strings.LastIndex(text, "Refreshing state..."); at >= 0 {
			_, text, _ = strings.Cut(text[at:], "\n")
		}
		return strings.TrimSpace(text) + "\n", nil
	}
	return "", err
}

// destroy removes everything without looking at it before, which is where the
// provider may hang.
func (t *terraform) destroy(ctx context.Context) error {
	_, err := t.run(ctx, destroyLimit, "destroy", append(t.files(), "-auto-approve", "-refresh=false")...)
	return err
}

// output reads one of the outputs.
func (t *terraform) output(ctx context.Context, name string, value any) error {
	out, err := t.run(ctx, planLimit, "output", "-no-color", "-json", "-state="+t.stateFile(), name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, value); err != nil {
		return fmt.Errorf("read Terraform's output %s: %w", name, err)
	}
	return nil
}

// step is a line of Terraform's that says what it does to a machine or the image;
// the rest is done in no time.
var step = regexp.MustCompile(`^\S*libvirt_(?:domain|volume)\.\S+: (Creating|Creation complete|Still creating|Destroying|Destruction complete|Still destroying|Modifying|Modifications complete)`)

// run runs one command within a limit and returns what it wrote to standard
// output. When ctx or the limit ends, Terraform is asked to stop, which makes it
// save what it did, and then killed with its providers.
func (t *terraform) run(ctx context.Context, limit time.Duration, command string, args ...string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	argv := append([]string{"-chdir=" + t.chdir, command}, args...)
	cmd := exec.CommandContext(limited, t.program.Program, argv...)
	cmd.Env = append(t.program.Environ(), "TF_DATA_DIR="+filepath.Join(t.dir, "terraform-data"))
	if t.held != nil {
		cmd.ExtraFiles = []*os.File{t.held}
	}
	// A group of its own: the terminal's interrupt reaches it through us alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = graceLimit
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var stdout bytes.Buffer
	lines, w := io.Pipe()
	cmd.Stdout = io.MultiWriter(&stdout, w)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run %s %s: %w", t.program.Name, command, err)
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		scanner := bufio.NewScanner(lines)
		for scanner.Scan() {
			if step.MatchString(scanner.Text()) {
				line, _, _ := strings.Cut(scanner.Text(), " [id=")
				t.say(t.program.Name + ": " + line)
			}
		}
		// A line too long to scan is not shown, but must not block the program.
		_, _ = io.Copy(io.Discard, lines)
	}()
	err := cmd.Wait()
	_ = w.Close()
	<-told
	// The providers, which a killed Terraform leaves.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s %s was interrupted: %w", t.program.Name, command, context.Cause(ctx))
	case limited.Err() != nil:
		return nil, fmt.Errorf("%s %s %w (%s)", t.program.Name, command, errTook, limit)
	default:
		return stdout.Bytes(), fmt.Errorf("%s %s: %w\n%s", t.program.Name, command, err, lastLines(stderr.String(), 30))
	}
}
