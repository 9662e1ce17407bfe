package box

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHierarchies(t *testing.T) {
	for name, c := range map[string]struct {
		mounts string
		own    map[string]string
		want   []hierarchy
	}{
		"None": {"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", nil, nil},
		"Second": {
			"30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", map[string]string{"": "/user.slice"},
			[]hierarchy{{base: "/sys/fs/cgroup"}},
		},
		"First": {
			"31 22 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n",
			map[string]string{"cpu,cpuacct": "/outer/own", "name=systemd": "/"},
			[]hierarchy{
				{name: "cpu,cpuacct", data: "cpu,cpuacct", base: "/sys/fs/cgroup/cpu,cpuacct/outer/own"},
				{name: "systemd", data: "none,name=systemd", base: "/sys/fs/cgroup/systemd"},
			},
		},
		"Both": {
			"32 31 0:29 /docker/ab /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			map[string]string{"pids": "/docker/ab/own", "": "/"},
			[]hierarchy{
				{name: "pids", data: "pids", base: "/sys/fs/cgroup/pids/own"},
				{name: "unified", base: "/sys/fs/cgroup/unified"},
			},
		},
		"Elsewhere": {"32 31 0:29 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n", nil, nil},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, parseHierarchies(c.mounts, c.own)) })
	}
}

// Files stand for the kernel's: version 2 alone, as most hosts have it, is not
// what every host of these tests has.
func TestControllersAreHandedDown(t *testing.T) {
	for name, c := range map[string]struct {
		name, there, given string
		want, says         string
	}{
		"AllAreGiven":      {there: "cpuset cpu io memory hugetlb pids", given: "cpuset cpu io memory pids", want: "cpuset cpu io memory pids"},
		"SomeAreGiven":     {there: "cpuset cpu io memory pids", given: "memory pids", want: "+cpuset +cpu +io"},
		"SomeAreMissing":   {there: "memory pids", given: "", says: "no control of cpuset, cpu, io, which Nomad needs"},
		"BesideTheFirst":   {name: "unified", there: "hugetlb", given: "", want: ""},
		"OneLeftForSecond": {name: "unified", there: "io", given: "", want: "+io"},
	} {
		t.Run(name, func(t *testing.T) {
			h := hierarchy{name: c.name, base: t.TempDir()}
			control := filepath.Join(h.base, "cgroup.subtree_control")
			require.NoError(t, os.WriteFile(filepath.Join(h.base, "cgroup.controllers"), []byte(c.there+"\n"), 0o600))
			require.NoError(t, os.WriteFile(control, []byte(c.given), 0o600))
			err := h.enable()
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			text, err := os.ReadFile(control)
			require.NoError(t, err)
			require.Equal(t, c.want, string(text))
		})
	}
	require.NoError(t, hierarchy{data: "cpu", base: t.TempDir()}.enable(), "the first version hands down by itself")
}
