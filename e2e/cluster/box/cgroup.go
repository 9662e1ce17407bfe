package box

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Control groups are the one thing that no namespace holds: each machine has one
// of its own in every hierarchy of the host, sees nothing above it, and leaves it
// behind for the keeper to remove.

// hierarchy is a tree of control groups.
type hierarchy struct {
	name string // of its mount point below /sys/fs/cgroup; empty when it is that
	data string // mount options that name it; empty for version 2
	base string // the group of this process, below which it makes others
}

const groupsFolder = "/sys/fs/cgroup"

// second says whether it is of version 2.
func (h hierarchy) second() bool { return h.data == "" }

// controllers are those of version 2 without which Nomad divides nothing among
// its tasks, and does not run them with exec.
const controllers = "cpuset cpu io memory pids"

// enable hands the controllers of version 2 down to the groups below this
// process's own: a group has those alone that the one above it gives.
func (h hierarchy) enable() error {
	if !h.second() {
		return nil
	}
	read := func(file string) ([]string, error) {
		text, err := os.ReadFile(filepath.Join(h.base, file))
		if err != nil {
			return nil, fmt.Errorf("look for control groups: %w", err)
		}
		return strings.Fields(string(text)), nil
	}
	there, err := read("cgroup.controllers")
	if err != nil {
		return err
	}
	given, err := read("cgroup.subtree_control")
	if err != nil {
		return err
	}
	var missing, give []string
	for controller := range strings.FieldsSeq(controllers) {
		switch {
		case !slices.Contains(there, controller):
			missing = append(missing, controller)
		case !slices.Contains(given, controller):
			give = append(give, "+"+controller)
		}
	}
	// Beside version 1 the controllers are there.
	if len(missing) > 0 && h.name == "" {
		return fmt.Errorf("%s has no control of %s, which Nomad needs: run this on the host, or in a container to which that is delegated", h.base, strings.Join(missing, ", "))
	}
	if len(give) == 0 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(h.base, "cgroup.subtree_control"), []byte(strings.Join(give, " ")), 0o644); err != nil {
		return fmt.Errorf("hand control groups down from %s (only the host's topmost group may have processes of its own and groups below it: run this on the host): %w", h.base, err)
	}
	return nil
}

// hierarchies are those that are mounted where everybody looks for them.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for control groups: %w", err)
	}
	memberships, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("look for control groups: %w", err)
	}
	own := map[string]string{} // path by name
	for line := range strings.Lines(string(memberships)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 {
			own[parts[1]] = parts[2]
		}
	}
	return parseHierarchies(string(mounts), own), nil
}

func parseHierarchies(mounts string, own map[string]string) []hierarchy {
	var found []hierarchy
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		place, kind := strings.Fields(before), strings.Fields(after)
		if len(place) < 5 || len(kind) < 3 || (kind[0] != "cgroup" && kind[0] != "cgroup2") {
			continue
		}
		name, below := strings.CutPrefix(place[4], groupsFolder)
		if !below {
			continue
		}
		h := hierarchy{name: strings.Trim(name, "/"), base: place[4]}
		if kind[0] == "cgroup2" {
			// Groups with processes have none below them in version 2: this
			// process's own cannot be the base.
			found = append(found, h)
			continue
		}
		var options []string
		for option := range strings.SplitSeq(kind[2], ",") {
			if slices.Contains([]string{"rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"}, option) || strings.HasPrefix(option, "release_agent=") {
				continue
			}
			options = append(options, option)
		}
		// As /proc/self/cgroup calls it.
		h.data = strings.Join(options, ",")
		path, ok := own[h.data]
		if strings.HasPrefix(h.data, "name=") {
			h.data = "none," + h.data
		}
		if ok {
			if inMount, err := filepath.Rel(place[3], path); err == nil && filepath.IsLocal(inMount) {
				h.base = filepath.Join(h.base, inMount)
			}
		}
		found = append(found, h)
	}
	return found
}

// makeGroups makes a machine's control groups on the host.
func makeGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := h.enable(); err != nil {
			return err
		}
		group := filepath.Join(h.base, name)
		if err := os.MkdirAll(group, 0o755); err != nil {
			return fmt.Errorf("make a control group: %w", err)
		}
		// Version 1 takes nobody into a group without processors and memory.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			text, err := os.ReadFile(filepath.Join(h.base, file))
			if errors.Is(err, os.ErrNotExist) || h.second() {
				continue
			}
			if err != nil {
				return fmt.Errorf("make a control group: %w", err)
			}
			if err := os.WriteFile(filepath.Join(group, file), text, 0o644); err != nil {
				return fmt.Errorf("make a control group: %w", err)
			}
		}
		// By itself a group gets as much of the processors as one process of the
		// host, which is little for a machine where there is much else.
		for file, weight := range map[string]string{"cpu.shares": "10240", "cpu.weight": "1000"} {
			path := filepath.Join(group, file)
			if _, err := os.Stat(path); err != nil {
				continue
			}
			if err := os.WriteFile(path, []byte(weight), 0o644); err != nil {
				return fmt.Errorf("weigh a control group: %w", err)
			}
		}
	}
	return nil
}

// joinGroups moves this process into control groups that were made.
func joinGroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := os.WriteFile(filepath.Join(h.base, name, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join a control group: %w", err)
		}
	}
	return nil
}

// controlGroups shows a machine its own control groups, as if they were all.
func (r rootFolder) controlGroups() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	several := slices.ContainsFunc(all, func(h hierarchy) bool { return h.name != "" })
	if several {
		if err := r.mount("tmpfs", groupsFolder, "tmpfs", "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range all {
		kind := "cgroup"
		if h.second() {
			kind = "cgroup2"
		}
		if err := r.mount(kind, filepath.Join(groupsFolder, h.name), kind, h.data); err != nil {
			return err
		}
	}
	if several || len(all) == 0 {
		return nil
	}
	// Version 2 alone: who wants to divide a group must have no process in it.
	leaf := filepath.Join(r.in(groupsFolder), "machine")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return fmt.Errorf("join a control group: %w", err)
	}
	return nil
}

// groupsOf are all groups on the host whose names begin so.
func groupsOf(prefix string) ([]string, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, h := range all {
		groups, err := filepath.Glob(filepath.Join(h.base, prefix+"*"))
		if err != nil {
			return nil, fmt.Errorf("look for control groups: %w", err)
		}
		found = append(found, groups...)
	}
	return found, nil
}

// removeGroup removes one with all below it.
func removeGroup(group string) error {
	var folders []string
	err := filepath.WalkDir(group, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return nil // one that is gone is no error
	})
	for _, folder := range slices.Backward(folders) {
		if gone := unix.Rmdir(folder); gone != nil && !errors.Is(gone, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("%s: %w", folder, gone))
		}
	}
	return err
}
