package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/tools"
)

// folder is a short path: below it are Unix sockets.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mq")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// open opens a cluster that is wiped when the test ends.
func open(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	next := cfg.Progress
	began := time.Now()
	cfg.Progress = func(line string) {
		if next != nil {
			next(line)
		}
		t.Logf("%5d ms %s", time.Since(began).Milliseconds(), line)
	}
	cfg.StopTimeout = 30 * time.Second
	c, err := Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
		defer cancel()
		if t.Failed() {
			for name, path := range c.Logs() {
				t.Logf("%s:\n%s", name, tail(path, 30))
			}
		}
		if err := c.Wipe(ctx); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(c.Dir()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Wipe left %s: %v", c.Dir(), err)
		}
	})
	return c
}

func up(t *testing.T, c *Cluster) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	start := time.Now()
	require.NoError(t, c.Up(ctx))
	status, err := c.Status(ctx)
	require.NoError(t, err)
	require.True(t, status.Ready, status.Problem)
	return time.Since(start)
}

func pids(t *testing.T, c *Cluster) map[string]int {
	t.Helper()
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	found := map[string]int{}
	for _, a := range status.Agents {
		found[a.Name] = a.PID
	}
	return found
}

// nothingLeft fails when anything of the cluster runs or is mounted.
func nothingLeft(t *testing.T, c *Cluster) {
	t.Helper()
	all, err := processes()
	require.NoError(t, err)
	for _, p := range all {
		if p.pid == os.Getpid() || p.parent == os.Getpid() {
			continue
		}
		require.NotContains(t, strings.Join(p.args, " "), c.Dir()+"/", "process %d", p.pid)
		require.False(t, strings.HasPrefix(p.cwd, c.Dir()+"/"), "process %d works in the folder: %v", p.pid, p.args)
		require.NotContains(t, strings.Join(p.env, "\n"), "TMPDIR="+c.Dir()+"/", "process %d: %v", p.pid, p.args)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), c.Dir())
	left, err := os.ReadDir(c.path("tmp"))
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

// echoJob is a Connect-native service whose task writes its environment down.
func echoJob(script string) *nomadapi.Job {
	job := nomadapi.NewServiceJob("echo", "echo", "global", 1)
	job.Datacenters = []string{"*"}
	group := nomadapi.NewTaskGroup("echo", 1)
	group.Networks = []*nomadapi.NetworkResource{{DynamicPorts: []nomadapi.Port{{Label: "mesh", HostNetwork: "loopback"}}}}
	group.Services = []*nomadapi.Service{{
		Name: "echo", PortLabel: "mesh", Provider: "consul", TaskName: "echo",
		Connect: &nomadapi.ConsulConnect{Native: true},
	}}
	task := nomadapi.NewTask("echo", "raw_exec")
	task.SetConfig("command", "/bin/sh").SetConfig("args", []string{"-c", script})
	task.LogConfig = nomadapi.DefaultLogConfig()
	group.AddTask(task)
	return job.AddTaskGroup(group)
}

// runEcho runs the job and waits until its task runs and its service is there.
func runEcho(t *testing.T, c *Cluster, script string) *nomadapi.AllocationListStub {
	t.Helper()
	_, _, err := c.Nomad().Jobs().Register(echoJob(script), nil)
	require.NoError(t, err)
	var alloc *nomadapi.AllocationListStub
	require.Eventually(t, func() bool {
		allocs, _, err := c.Nomad().Jobs().Allocations("echo", false, nil)
		if err != nil {
			return false
		}
		services, _, err := c.Consul().Catalog().Service("echo", "", nil)
		for _, a := range allocs {
			if a.ClientStatus == nomadapi.AllocClientStatusRunning && err == nil && len(services) == 1 {
				alloc = a
			}
		}
		return alloc != nil
	}, 30*time.Second, 50*time.Millisecond, "the job does not run")
	return alloc
}

const writeEnvironment = `env > "$NOMAD_ALLOC_DIR/env.new"; mv "$NOMAD_ALLOC_DIR/env.new" "$NOMAD_ALLOC_DIR/env"; exec sleep 600`

// taskEnvironment is what the task of runEcho(writeEnvironment) has seen.
func taskEnvironment(t *testing.T, c *Cluster, alloc string) map[string]string {
	t.Helper()
	file := c.path("alloc", alloc, "alloc", "env")
	var text []byte
	require.Eventually(t, func() bool {
		var err error
		text, err = os.ReadFile(file)
		return err == nil
	}, 10*time.Second, 20*time.Millisecond, "the task has not written its environment")
	env := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[name] = value
	}
	return env
}

// TestLife takes one cluster through all that can happen to it.
func TestLife(t *testing.T) {
	// Nothing of the caller's environment may reach agents or tasks, and none of
	// it may lead the clients elsewhere.
	t.Setenv("SECRET_OF_THE_CALLER", "x")
	t.Setenv("CONSUL_HTTP_SSL", "true")
	t.Setenv("CONSUL_CACERT", "/nowhere")
	t.Setenv("NOMAD_CACERT", "/nowhere")
	t.Setenv("NOMAD_TOKEN", "x")

	c := open(t, Config{Dir: filepath.Join(folder(t), "life")})
	require.Empty(t, c.Env())
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	require.False(t, status.Ready)
	require.NoError(t, c.Down(t.Context()), "down of a cluster that was never up")

	took := up(t, c)
	t.Logf("first start to ready: %v", took)
	first := pids(t, c)

	t.Run("UpAgainChangesNothing", func(t *testing.T) {
		before := consulIndex(t, c)
		again := up(t, c)
		t.Logf("up again: %v", again)
		require.Equal(t, first, pids(t, c))
		require.Equal(t, before, consulIndex(t, c), "Consul was written to")
		require.Less(t, again, 5*time.Second)
		other, err := Open(Config{Dir: c.Dir()})
		require.NoError(t, err)
		require.NoError(t, other.Up(t.Context()))
		require.Equal(t, first, pids(t, other), "another process sees another cluster")
	})

	t.Run("SecretsAreTheOwners", func(t *testing.T) {
		for _, name := range []string{"secrets.json", "config/consul.hcl", "config/nomad-server.hcl", "config/nomad-client.hcl", "logs/consul.log"} {
			info, err := os.Stat(c.path(name))
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), name)
		}
	})

	t.Run("DefaultDeny", func(t *testing.T) {
		_, _, err := c.consulClient("00000000-0000-0000-0000-000000000000").Catalog().Services(nil)
		require.Error(t, err)
		anonymous, err := consulapi.NewClient(&consulapi.Config{Address: c.addr(portConsulHTTP), Scheme: "http", HttpClient: http.DefaultClient})
		require.NoError(t, err)
		require.Error(t, anonymous.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "intruder"}))
		nomad, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://" + c.addr(portNomadHTTP)})
		require.NoError(t, err)
		_, _, err = nomad.Jobs().List(nil)
		require.Error(t, err)
	})

	var alloc *nomadapi.AllocationListStub
	t.Run("JobsHaveIdentities", func(t *testing.T) {
		alloc = runEcho(t, c, writeEnvironment)
		env := taskEnvironment(t, c, alloc.ID)
		require.NotContains(t, env, "SECRET_OF_THE_CALLER")
		require.NotContains(t, env, "NOMAD_TOKEN")
		require.NotEqual(t, c.secrets.ConsulManagement, env["CONSUL_HTTP_TOKEN"])
		port, err := strconv.Atoi(env["NOMAD_PORT_mesh"])
		require.NoError(t, err)
		require.GreaterOrEqual(t, port, c.port(portDynamicFirst))
		require.LessOrEqual(t, port, c.port(portDynamicLast))
		require.Equal(t, "127.0.0.1:"+env["NOMAD_PORT_mesh"], env["NOMAD_ADDR_mesh"])

		token := c.consulClient(env["CONSUL_HTTP_TOKEN"])
		leaf, _, err := token.Agent().ConnectCALeaf("echo", nil)
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(leaf.ServiceURI, "/svc/echo"), leaf.ServiceURI)
		require.Error(t, token.Agent().ServiceRegister(&consulapi.AgentServiceRegistration{Name: "other"}), "its token speaks for another service")
	})

	for _, name := range []string{consulName, nomadServerName, nomadClientName} {
		t.Run("Killed/"+name, func(t *testing.T) {
			killed := pids(t, c)
			require.NoError(t, syscall.Kill(killed[name], syscall.SIGKILL))
			require.Eventually(t, func() bool { return pids(t, c)[name] == 0 }, 5*time.Second, 10*time.Millisecond)
			status, err := c.Status(t.Context())
			require.NoError(t, err)
			require.False(t, status.Ready)
			require.Contains(t, status.Problem, name+" not running")

			t.Logf("back after %v", up(t, c))
			now := pids(t, c)
			for other, pid := range killed {
				if other == name {
					require.NotEqual(t, pid, now[other])
				} else {
					require.Equal(t, pid, now[other], "%s was restarted", other)
				}
			}
			same, _, err := c.Nomad().Allocations().Info(alloc.ID, nil)
			require.NoError(t, err)
			require.Equal(t, nomadapi.AllocClientStatusRunning, same.ClientStatus)
		})
	}

	t.Run("SideBySideAsAnotherUser", func(t *testing.T) { asOrdinaryUser(t) })

	t.Run("DownAndUpKeepsWhatWasThere", func(t *testing.T) {
		env := c.Env()
		start := time.Now()
		require.NoError(t, c.Down(t.Context()))
		t.Logf("down with a job: %v", time.Since(start))
		nothingLeft(t, c)
		require.NoError(t, c.Down(t.Context()), "down again")

		again, err := Open(Config{Dir: c.Dir()})
		require.NoError(t, err)
		require.Equal(t, env, again.Env(), "ports or tokens changed")
		warm := up(t, c)
		t.Logf("warm start to ready: %v", warm)
		runEcho(t, c, "exec sleep 601")
	})

	t.Run("DownWhenAnAgentHangs", func(t *testing.T) {
		hung := pids(t, c)[nomadServerName]
		require.NoError(t, syscall.Kill(hung, syscall.SIGSTOP))
		defer func() { _ = syscall.Kill(hung, syscall.SIGCONT) }()
		start := time.Now()
		require.NoError(t, c.Down(t.Context()))
		t.Logf("down with a hanging agent: %v", time.Since(start))
		nothingLeft(t, c)
		up(t, c)
		runEcho(t, c, "exec sleep 602")
	})

	t.Run("DownAfterTheAgentsWereKilled", func(t *testing.T) {
		for _, pid := range pids(t, c) {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
		require.NoError(t, c.Down(t.Context()))
		nothingLeft(t, c)
	})
}

func consulIndex(t *testing.T, c *Cluster) [4]uint64 {
	t.Helper()
	var index [4]uint64
	_, meta, err := c.Consul().ConfigEntries().List(consulapi.ServiceIntentions, nil)
	require.NoError(t, err)
	index[0] = meta.LastIndex
	tokens, _, err := c.Consul().ACL().TokenList(nil)
	require.NoError(t, err)
	for _, token := range tokens {
		if token.AuthMethod == "" {
			index[1] += token.ModifyIndex
		}
	}
	policies, _, err := c.Consul().ACL().PolicyList(nil)
	require.NoError(t, err)
	for _, p := range policies {
		index[2] += p.ModifyIndex
	}
	methods, _, err := c.Consul().ACL().AuthMethodList(nil)
	require.NoError(t, err)
	for _, m := range methods {
		index[3] += m.ModifyIndex
	}
	return index
}

// Half a cluster can be continued and taken down.
func TestHalfStarted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := open(t, Config{Dir: filepath.Join(folder(t), "half"), Progress: func(line string) {
		if line == "starting Consul and Nomad" {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
	}})
	require.ErrorIs(t, c.Up(ctx), context.Canceled)
	half := pids(t, c)
	require.NotZero(t, half[consulName])
	require.Zero(t, half[nomadClientName])

	t.Run("Down", func(t *testing.T) {
		require.NoError(t, c.Down(t.Context()))
		nothingLeft(t, c)
	})
	t.Run("PortInUse", func(t *testing.T) {
		l, err := net.Listen("tcp", c.addr(portNomadRPC))
		require.NoError(t, err)
		defer l.Close()
		var inUse *PortInUseError
		require.ErrorAs(t, c.Up(t.Context()), &inUse)
		require.Equal(t, c.port(portNomadRPC), inUse.Port)
		require.Contains(t, inUse.Error(), fmt.Sprintf("process %d: %s", os.Getpid(), os.Args[0]))
		require.Contains(t, inUse.Error(), "Nomad's RPC")
	})
	t.Run("Up", func(t *testing.T) {
		half := pids(t, c)
		require.NotZero(t, half[consulName], "Consul was started before Nomad's port was found in use")
		up(t, c)
		require.Equal(t, half[consulName], pids(t, c)[consulName])
	})
}

func TestAgentDies(t *testing.T) {
	c := open(t, Config{Dir: filepath.Join(folder(t), "dies")})
	require.NoError(t, os.MkdirAll(c.path("consul", "raft"), 0o700))
	require.NoError(t, os.WriteFile(c.path("consul", "raft", "raft.db"), []byte("no database"), 0o600))
	start := time.Now()
	err := c.Up(t.Context())
	require.ErrorContains(t, err, "consul has ended")
	require.ErrorContains(t, err, "invalid database")
	require.Less(t, time.Since(start), 20*time.Second)
}

func TestPorts(t *testing.T) {
	t.Run("NobodyListens", func(t *testing.T) {
		require.Equal(t, "a connection that has not ended yet", holder(1))
	})
	t.Run("UDP", func(t *testing.T) {
		p, err := net.ListenPacket("udp", "127.0.0.1:0")
		require.NoError(t, err)
		defer p.Close()
		var inUse *PortInUseError
		require.ErrorAs(t, checkFree(t.Context(), p.LocalAddr().(*net.UDPAddr).Port, true, "gossip"), &inUse)
		require.Contains(t, inUse.Holder, strconv.Itoa(os.Getpid()))
	})
	t.Run("BlocksAreNotSharedInACheckout", func(t *testing.T) {
		dir := folder(t)
		a, err := Open(Config{Dir: filepath.Join(dir, "a")})
		require.NoError(t, err)
		require.NoError(t, a.prepare(t.Context()))
		a.unclaim()
		b, err := Open(Config{Dir: filepath.Join(dir, "b")})
		require.NoError(t, err)
		require.NoError(t, b.prepare(t.Context()))
		defer b.unclaim()
		require.NotEqual(t, a.state.PortBase, b.state.PortBase)
		// Another checkout cannot see b's folder, but b's claim.
		elsewhere, err := Open(Config{Dir: filepath.Join(folder(t), "c")})
		require.NoError(t, err)
		require.NoError(t, elsewhere.prepare(t.Context()))
		defer elsewhere.unclaim()
		require.NotEqual(t, b.state.PortBase, elsewhere.state.PortBase)
	})
	t.Run("SkipsABlockInUse", func(t *testing.T) {
		a, err := Open(Config{Dir: filepath.Join(folder(t), "a")})
		require.NoError(t, err)
		require.NoError(t, a.prepare(t.Context()))
		defer a.unclaim()
		l, err := net.Listen("tcp", a.addr(portDynamicFirst+1))
		require.NoError(t, err)
		defer l.Close()
		a.unclaim()
		b, err := Open(Config{Dir: filepath.Join(folder(t), "b")})
		require.NoError(t, err)
		require.NoError(t, b.prepare(t.Context()))
		defer b.unclaim()
		require.NotEqual(t, a.state.PortBase, b.state.PortBase)
	})
	t.Run("ErrBlock", func(t *testing.T) {
		c, err := Open(Config{Dir: filepath.Join(folder(t), "a"), PortBase: 65000})
		require.NoError(t, err)
		require.ErrorContains(t, c.prepare(t.Context()), "port block 65000")
	})
}

func TestOpen(t *testing.T) {
	t.Run("ErrPathTooLong", func(t *testing.T) {
		_, err := Open(Config{Dir: "/" + strings.Repeat("x", 100)})
		require.ErrorContains(t, err, "shorter path")
	})
	t.Run("SameFolderThroughALink", func(t *testing.T) {
		dir := folder(t)
		require.NoError(t, os.Mkdir(filepath.Join(dir, "real"), 0o755))
		require.NoError(t, os.Symlink("real", filepath.Join(dir, "link")))
		before, err := Open(Config{Dir: filepath.Join(dir, "link", "clusters", "a")})
		require.NoError(t, err)
		require.Equal(t, filepath.Join(dir, "real", "clusters", "a"), before.Dir())
		require.NoError(t, os.MkdirAll(before.Dir(), 0o755))
		after, err := Open(Config{Dir: filepath.Join(dir, "link", "clusters", "a")})
		require.NoError(t, err)
		require.Equal(t, before.Dir(), after.Dir())
	})
	t.Run("ErrDamaged", func(t *testing.T) {
		dir := folder(t)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "state.json"), []byte("{"), 0o600))
		_, err := Open(Config{Dir: dir})
		require.ErrorContains(t, err, "state.json")
	})
}

// A number that the kernel gave to another process is not signalled.
func TestSignalKnowsTheProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	p, ok := readProcess(cmd.Process.Pid)
	require.True(t, ok)
	recycled := p
	recycled.started = "1"
	require.False(t, recycled.lives())
	require.NoError(t, recycled.signal(syscall.SIGKILL))
	require.True(t, p.lives())
	require.NoError(t, p.signal(syscall.SIGKILL))
	require.Empty(t, gone(t.Context(), 5*time.Second, []process{p}))
}

func TestQuote(t *testing.T) {
	require.Equal(t, `"a\"b$${c}%%{d}"`, quote(`a"b${c}%{d}`))
}

// asUser names the folder in which TestAsOrdinaryUser works, rootsPort a port on
// which root listens.
const (
	asUser    = "MARQUEE_TEST_AS_USER"
	rootsPort = "MARQUEE_TEST_ROOTS_PORT"
)

// asOrdinaryUser runs TestAsOrdinaryUser as nobody when this is root: a second
// cluster, beside the one that runs already.
func asOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this is an ordinary user: the whole test is about it")
	}
	nobody, err := user.Lookup("nobody")
	require.NoError(t, err)
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	require.NoError(t, err)
	dir := folder(t)
	require.NoError(t, os.Chown(dir, int(uid), int(gid)))
	root, err := tools.Root()
	require.NoError(t, err)
	for at := root; at != "/"; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		require.NoError(t, err)
		if info.Mode().Perm()&0o001 == 0 {
			t.Skipf("the checkout lies below %s, which nobody may enter", at)
		}
	}
	// The test binary lies in a folder of root's.
	self, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	binary := filepath.Join(dir, "cluster.test")
	require.NoError(t, os.WriteFile(binary, self, 0o755))
	require.NoError(t, os.Chmod(binary, 0o755))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.v", "-test.run", "^TestAsOrdinaryUser$")
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "MARQUEE_ROOT=" + root, asUser + "=" + dir,
		fmt.Sprintf("%s=%d", rootsPort, l.Addr().(*net.TCPAddr).Port),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	require.NoError(t, err)
	require.Contains(t, string(out), "--- PASS: TestAsOrdinaryUser")
}

func TestAsOrdinaryUser(t *testing.T) {
	dir := os.Getenv(asUser)
	if dir == "" {
		t.Skip("run by TestLife as another user")
	}
	port, err := strconv.Atoi(os.Getenv(rootsPort))
	require.NoError(t, err)
	require.Equal(t, "another user's process", holder(port))

	c := open(t, Config{Dir: filepath.Join(dir, "user")})
	t.Logf("first start to ready: %v", up(t, c))
	alloc := runEcho(t, c, writeEnvironment)
	require.NotEmpty(t, taskEnvironment(t, c, alloc.ID)["CONSUL_HTTP_TOKEN"])
	require.NoError(t, c.Down(t.Context()))
	nothingLeft(t, c)
}
