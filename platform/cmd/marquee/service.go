package main

import (
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/jobs"
)

type logsCmd struct {
	Service string `arg:"" help:"The service, for example account."`
	Follow  bool   `short:"f" help:"Go on until Ctrl-C, also with instances that start later."`
	Lines   int    `short:"n" default:"100" help:"Lines of each instance's streams to show from before."`
}

// Run shows logs.
func (c *logsCmd) Run(e *env) error {
	s, err := e.running(nil)
	if err != nil {
		return err
	}
	return s.Jobs().Logs(e.ctx, c.Service, jobs.LogOptions{Lines: c.Lines, Follow: c.Follow}, e.stdout)
}

type deployCmd struct {
	Service string            `arg:"" help:"The service, for example account."`
	Var     map[string]string `placeholder:"NAME=VALUE" help:"A value for a variable of the job file, for example account_count=5. It holds for this deployment alone."`
	Timeout time.Duration     `default:"10m" help:"Give up after this long. Nomad goes on by itself."`
	JSON    bool              `name:"json" help:"Print the result as JSON; progress goes to standard error."`
}

// Run builds and rolls out one service.
func (c *deployCmd) Run(e *env) error {
	ctx, cancel := e.within(c.Timeout)
	defer cancel()
	steps := newSteps(e.stderr)
	s, err := e.running(func(line string) { steps.say("%s", line) })
	if err != nil {
		return err
	}
	done, err := s.Deploy(ctx, c.Service, c.Var)
	if err != nil {
		return because(ctx, err)
	}
	if c.JSON {
		return e.printJSON(map[string]any{
			"service": done.Job, "unchanged": done.Unchanged, "version": done.Version, "seconds": steps.elapsed().Seconds(),
		})
	}
	if done.Unchanged {
		_, err = fmt.Fprintf(e.stdout, "%s ran this already (version %d); nothing was changed.\n", done.Job, done.Version)
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s is deployed (version %d) after %.1f s.\n", done.Job, done.Version, steps.elapsed().Seconds())
	return err
}

type restartCmd struct {
	Service string        `arg:"" help:"The service, for example account."`
	Timeout time.Duration `default:"10m" help:"Give up after this long."`
}

// Run replaces a service's instances.
func (c *restartCmd) Run(e *env) error {
	ctx, cancel := e.within(c.Timeout)
	defer cancel()
	steps := newSteps(e.stderr)
	s, err := e.running(nil)
	if err != nil {
		return err
	}
	err = s.Jobs().Restart(ctx, c.Service, func(p jobs.Progress) {
		steps.say("%s: %d of %d replaced: %s", p.Job, p.Healthy, p.Desired, p.Message)
	})
	if err != nil {
		return because(ctx, err)
	}
	return nil
}
