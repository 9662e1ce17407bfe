package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/term"

	"github.com/marquee-ads/marquee/platform/jobs"
)

// exitError has marquee exit with a command's own exit code.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("the command ended with exit code %d", e.code) }

type jobsExecCmd struct {
	Target  string   `arg:"" name:"job|instance" help:"A job of which one instance runs, or an instance: the beginning of its allocation's id, as marquee jobs list shows it."`
	Command []string `arg:"" help:"The command and its arguments, after --."`
	Task    string   `help:"The task, when the instance has several."`
	TTY     string   `name:"tty" default:"auto" enum:"auto,always,never" help:"Give the command a terminal: auto when standard input and output are one."`
}

// Run runs a command.
func (c *jobsExecCmd) Run(e *env, j *jobsCmd) error {
	client, _, err := j.reach(e)
	if err != nil {
		return err
	}
	options := jobs.ExecOptions{Task: c.Task, Command: c.Command, Stdin: e.stdin, Stdout: e.stdout, Stderr: e.stderr}
	in, out, onTerminal := e.terminal()
	options.TTY = c.TTY == "always" || c.TTY == "auto" && onTerminal
	if options.TTY && onTerminal {
		before, err := term.MakeRaw(in)
		if err != nil {
			return fmt.Errorf("preparing the terminal (--tty=never does without): %w", err)
		}
		defer func() { _ = term.Restore(in, before) }() // nothing can be done about it
		sizes, stop := resizes(out)
		defer stop()
		options.Resize = sizes
	}
	code, err := client.Exec(e.ctx, c.Target, options)
	if err != nil {
		return err
	}
	if code != 0 {
		return &exitError{code}
	}
	return nil
}

// terminal is the file descriptors of standard input and output, and whether
// both are a terminal.
func (e *env) terminal() (in, out int, both bool) {
	stdin, ok1 := e.stdin.(*os.File)
	stdout, ok2 := e.stdout.(*os.File)
	if !ok1 || !ok2 {
		return 0, 0, false
	}
	in, out = int(stdin.Fd()), int(stdout.Fd())
	return in, out, term.IsTerminal(in) && term.IsTerminal(out)
}

// resizes tells the terminal's size now and whenever it changes, until stop.
func resizes(terminal int) (sizes <-chan nomad.TerminalSize, stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	changed <- syscall.SIGWINCH
	told := make(chan nomad.TerminalSize)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-changed:
			}
			width, height, err := term.GetSize(terminal)
			if err != nil {
				continue
			}
			select {
			case <-end:
				return
			case told <- nomad.TerminalSize{Height: height, Width: width}:
			}
		}
	}()
	return told, func() {
		signal.Stop(changed)
		close(end)
		<-ended
	}
}
