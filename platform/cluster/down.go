package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
)

// How long what Down ends may take before it is killed.
const (
	agentBound = 5 * time.Second
	taskBound  = 10 * time.Second
	killBound  = 5 * time.Second
)

func (c *Cluster) down(ctx context.Context) error {
	if err := c.load(); err != nil {
		return err
	}
	if err := c.stopJobs(ctx); err != nil {
		return err
	}
	c.http.CloseIdleConnections()
	c.say("stopping Nomad and Consul")
	for _, a := range []agent{c.nomadClient("", ""), c.nomadServer(""), c.consulAgent("")} {
		if err := c.stopAgent(ctx, a); err != nil {
			return err
		}
	}
	if err := c.endLeftovers(ctx); err != nil {
		return err
	}
	if err := c.unmount(); err != nil {
		return err
	}
	if err := c.removeNamespaces(); err != nil {
		return err
	}
	if err := c.removeCgroups(); err != nil {
		return err
	}
	if err := empty(c.path("tmp")); err != nil {
		return err
	}
	c.say("nothing of the cluster runs")
	return nil
}

// stopJobs stops every job and waits until its allocations have ended, so that
// services drain and databases write their checkpoints. Without both Nomad
// agents it cannot, and what runs is ended as leftovers.
func (c *Cluster) stopJobs(ctx context.Context) error {
	for _, a := range []agent{c.nomadServer(""), c.nomadClient("", "")} {
		if found, err := c.running(a); err != nil || found == nil {
			return err
		}
	}
	everywhere := func(ctx context.Context) *nomadapi.QueryOptions {
		return (&nomadapi.QueryOptions{Namespace: nomadapi.AllNamespacesNamespace}).WithContext(ctx)
	}
	nomad := c.Nomad()
	c.say("stopping the jobs")
	brief, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	jobs, _, err := nomad.Jobs().List(everywhere(brief))
	stopped := 0
	for _, j := range jobs {
		if err != nil || j.Stop {
			continue
		}
		_, _, err = nomad.Jobs().Deregister(j.ID, false, (&nomadapi.WriteOptions{Namespace: j.Namespace}).WithContext(brief))
		stopped++
	}
	if ctx.Err() != nil {
		return fmt.Errorf("stop the jobs: %w", ctx.Err())
	}
	if err != nil {
		c.say(fmt.Sprintf("Nomad does not stop its jobs (%v): ending them without it", err))
		return nil
	}
	var left []string
	err = c.waitFor(ctx, "the jobs have stopped", c.cfg.StopTimeout, nomadClientName, func(ctx context.Context) error {
		allocs, _, err := nomad.Allocations().List(everywhere(ctx))
		if err != nil {
			return err
		}
		was := len(left)
		left = nil
		for _, a := range allocs {
			if a.ClientStatus == nomadapi.AllocClientStatusRunning || a.ClientStatus == nomadapi.AllocClientStatusPending {
				left = append(left, a.Name)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if len(left) != was {
			c.say(fmt.Sprintf("stopping the jobs: %d allocations left", len(left)))
		}
		return fmt.Errorf("still running: %s", strings.Join(left, ", "))
	})
	switch {
	case ctx.Err() != nil:
		return err
	case err != nil:
		c.say(fmt.Sprintf("ending without waiting any longer: %s", strings.Join(left, ", ")))
	default:
		c.say(fmt.Sprintf("%d jobs stopped", stopped))
	}
	return nil
}

// stopAgent interrupts an agent, which makes it stop without leaving its
// cluster, and kills it when that takes too long.
func (c *Cluster) stopAgent(ctx context.Context, a agent) error {
	found, err := c.running(a)
	if err != nil {
		return err
	}
	if found != nil {
		if err := end(ctx, []process{*found}, syscall.SIGINT, agentBound); err != nil {
			return fmt.Errorf("stop %s: %w", a.name, err)
		}
	}
	c.mu.Lock()
	exited := c.exited[a.name]
	delete(c.exited, a.name)
	c.mu.Unlock()
	if exited != nil {
		<-exited
	}
	return nil
}

// end asks processes to end, and kills those that do not within the bound.
func end(ctx context.Context, all []process, sig syscall.Signal, bound time.Duration) error {
	var errs []error
	for _, p := range all {
		errs = append(errs, p.signal(sig))
	}
	left := gone(ctx, bound, all)
	for _, p := range left {
		errs = append(errs, p.signal(syscall.SIGKILL))
	}
	if left = gone(context.WithoutCancel(ctx), killBound, left); len(left) > 0 {
		errs = append(errs, fmt.Errorf("process %d (%s) cannot be ended", left[0].pid, strings.Join(left[0].args, " ")))
	}
	return errors.Join(errs...)
}

// endLeftovers ends what a killed agent left: tasks first, as their job would
// (SIGINT is the fast shutdown of Postgres), then Nomad's helpers around them.
func (c *Cluster) endLeftovers(ctx context.Context) error {
	tasks, helpers, err := c.leftovers()
	if err != nil {
		return err
	}
	if err := end(ctx, tasks, syscall.SIGINT, taskBound); err != nil {
		return fmt.Errorf("end the tasks that are left: %w", err)
	}
	// A task that was ended may have been started again meanwhile.
	tasks, more, err := c.leftovers()
	if err != nil {
		return err
	}
	if err := end(ctx, append(append(helpers, more...), tasks...), syscall.SIGKILL, killBound); err != nil {
		return fmt.Errorf("end what is left of Nomad: %w", err)
	}
	return nil
}

// leftovers are all processes of the cluster: Nomad's helpers and agents, which
// have a path below the folder among their arguments or as their TMPDIR, and
// tasks, which have one as their allocation, working directory or program. A shell, a pager or an
// editor that somebody has open in the folder is none of them: it has a
// terminal. Neither is this process or one above it.
func (c *Cluster) leftovers() (tasks, helpers []process, err error) {
	all, err := processes()
	if err != nil {
		return nil, nil, err
	}
	byPID := map[int]process{}
	for _, p := range all {
		byPID[p.pid] = p
	}
	above := map[int]bool{}
	for pid := os.Getpid(); pid > 0 && !above[pid]; pid = byPID[pid].parent {
		above[pid] = true
	}
	below := c.cfg.Dir + string(filepath.Separator)
	for _, p := range all {
		if above[p.pid] {
			continue
		}
		program := filepath.Base(p.exe)
		switch {
		case (program == "nomad" || program == "consul") &&
			(slices.ContainsFunc(p.args, func(arg string) bool { return strings.Contains(arg, below) }) ||
				// What a task's logs go through outlives an agent that was killed, and
				// only its environment says whose it is.
				slices.ContainsFunc(p.env, func(kv string) bool { return strings.HasPrefix(kv, "TMPDIR="+below) })):
			helpers = append(helpers, p)
		case slices.ContainsFunc(p.env, func(kv string) bool { return strings.HasPrefix(kv, "NOMAD_ALLOC_DIR="+below) }),
			!p.tty && (strings.HasPrefix(p.cwd, below) || strings.HasPrefix(p.exe, below)):
			tasks = append(tasks, p)
		}
	}
	return tasks, helpers, nil
}

// unmount takes away what Nomad mounted for tasks (their secrets, as root).
func (c *Cluster) unmount() error {
	points, err := c.mounts()
	if err != nil {
		return err
	}
	slices.Reverse(points)
	for _, point := range points {
		if err := syscall.Unmount(point, 0); err != nil {
			if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", point, err)
			}
		}
	}
	return nil
}

// mounts are the mount points below the folder, outer ones first.
func (c *Cluster) mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for mounts: %w", err)
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for line := range strings.Lines(string(text)) {
		// id parent major:minor root mount-point options …
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape.Replace(fields[4]); strings.HasPrefix(point, c.cfg.Dir+"/") {
			points = append(points, point)
		}
	}
	return points, nil
}

// allocations are the ids of all that the client has a folder of.
func (c *Cluster) allocations() ([]string, error) {
	entries, err := os.ReadDir(c.path("alloc"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for allocations: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// removeNamespaces removes the network namespaces of allocations in bridge mode
// whose client was killed. They are mounted outside the cluster's folder, under
// the allocation's id.
func (c *Cluster) removeNamespaces() error {
	if os.Geteuid() != 0 {
		return nil
	}
	ids, err := c.allocations()
	if err != nil {
		return err
	}
	for _, id := range ids {
		file := filepath.Join("/var/run/netns", id)
		if _, err := os.Stat(file); err != nil {
			continue
		}
		if err := syscall.Unmount(file, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("remove the network namespace of allocation %s: %w", id, err)
		}
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("remove the network namespace of allocation %s: %w", id, err)
		}
		cached, err := filepath.Glob("/var/lib/cni/results/nomad-" + id + "-*")
		if err != nil {
			return err
		}
		for _, file := range cached {
			_ = os.Remove(file) // what the plugins answered, of use to nobody now
		}
	}
	return removeAddresses(ids)
}

// removeAddresses gives back the addresses that the bridge's plugin has noted
// for these allocations, and takes its notes away when nobody has an address.
func removeAddresses(ids []string) error {
	const notes = "/var/run/cni/nomad"
	files, err := filepath.Glob(filepath.Join(notes, "*"))
	if err != nil {
		return err
	}
	used := false
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || net.ParseIP(filepath.Base(file)) == nil {
			continue
		}
		// The first line is the allocation, the second its interface.
		id, _, _ := strings.Cut(string(text), "\n")
		if !slices.Contains(ids, strings.TrimSpace(id)) {
			used = true
			continue
		}
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("give back an allocation's address: %w", err)
		}
	}
	if used {
		return nil
	}
	for _, file := range files {
		_ = os.Remove(file)
	}
	for _, dir := range []string{notes, "/var/run/cni", "/var/lib/cni/results", "/var/lib/cni/networks", "/var/lib/cni"} {
		_ = os.Remove(dir) // refused when another program has something in it
	}
	return nil
}

// removeCgroups removes the empty control groups that Nomad's client makes as
// root: those of this cluster's allocations, which stay when it was killed, and
// the ones around them, which it leaves when it ends. Their name cannot be
// chosen (cgroup_parent is read and not used by Nomad 1.11), so that all clients
// of a machine share those, and the last one to end takes them away.
func (c *Cluster) removeCgroups() error {
	if os.Geteuid() != 0 {
		return nil
	}
	all, err := processes()
	if err != nil {
		return err
	}
	others := slices.ContainsFunc(all, func(p process) bool {
		return len(p.args) > 1 && filepath.Base(p.args[0]) == "nomad" && p.args[1] == "agent"
	})
	ids, err := c.allocations()
	if err != nil {
		return err
	}
	ours := func(group string) bool {
		return slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(filepath.Base(group), id+".") })
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/nomad", "/sys/fs/cgroup/nomad.slice"} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, root := range roots {
			var groups []string
			_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() && (!others || ours(path)) {
					groups = append(groups, path)
				}
				return nil // it ended meanwhile
			})
			slices.Reverse(groups)
			for _, group := range groups {
				// The kernel refuses when somebody is in it: then it is not ours.
				_ = os.Remove(group)
			}
		}
	}
	return nil
}

// empty removes what a folder holds.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("empty %s: %w", dir, err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("empty %s: %w", dir, err)
		}
	}
	return nil
}
