package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/bench/fleet"
	"github.com/marquee-ads/marquee/platform/tools"
)

// broker is one of the programs that displays are connected to.
type broker struct {
	name    string
	process *process
	address string
	fleet   *players
	qos     byte
	// checks says that it looks at who connects, as the device service does.
	checks bool
	// collect, when it is not nil, has it free what it does not use; label names
	// what it writes.
	collect func(ctx context.Context, label string) error
	// ready, when it is not nil, waits until a change can be sent.
	ready func(context.Context) error
	// change sends something to all whose message will contain text.
	change func(ctx context.Context, number int) error
	// text is in the message of a change.
	text func(number int) string
	// leaveEvery is from one display that leaves to the next.
	leaveEvery time.Duration
	// forget, when it is not nil, waits until it is done with those that left.
	forget func(context.Context) error

	before, after int64 // memory, without displays and with all
	connects      []fleet.Report
	fanOuts       []time.Duration
}

// players is a process of clients.
type players struct {
	process *process
	orders  *json.Encoder
	reports *json.Decoder
}

// startFleet runs clients that connect as these.
func (b *bench) startFleet(name string, logins []fleet.Login) (*players, error) {
	text, err := json.Marshal(logins)
	if err != nil {
		return nil, fmt.Errorf("write the logins of %s: %w", name, err)
	}
	file := filepath.Join(b.dir, name+"-logins")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("write the logins of %s: %w", name, err)
	}
	p := &process{name: name, log: filepath.Join(b.dir, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("make the log of %s: %w", name, err)
	}
	defer log.Close()
	p.cmd = exec.Command(filepath.Join(b.dir, "fleet"), "-logins", file) //nolint:noctx // it is stopped by its pid, in order
	p.cmd.Env = []string{"GOGC=400"}
	p.cmd.Stderr = log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	orders, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	reports, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.pid = p.cmd.Process.Pid
	b.closers = append(b.closers, p.stop)
	return &players{process: p, orders: json.NewEncoder(orders), reports: json.NewDecoder(reports)}, nil
}

// do has the players do something, and kills them when ctx ends before.
func (p *players) do(ctx context.Context, o fleet.Order) (fleet.Report, error) {
	defer context.AfterFunc(ctx, func() { _ = p.process.cmd.Process.Kill() })()
	var r fleet.Report
	err := p.orders.Encode(o)
	if err == nil {
		err = p.reports.Decode(&r)
	}
	switch {
	case ctx.Err() != nil:
		return r, ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EPIPE):
		said, _ := os.ReadFile(p.process.log) // none is no other failure
		return r, fmt.Errorf("the players have ended; they said\n%s", said)
	case err != nil:
		return r, fmt.Errorf("tell the players what to do: %w", err)
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

// findMosquitto is "" where it is not installed.
func findMosquitto() string {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// noMosquitto is what is printed instead of its figures. Debian starts the package's
// service, which is not needed.
const noMosquitto = "mosquitto is not installed: its figures are left out (apt-get install -y --no-install-recommends mosquitto, then systemctl disable --now mosquitto)"

// mosquitto is nil where it is not installed.
func (b *bench) mosquitto(ctx context.Context, logins []fleet.Login) (*broker, error) {
	binary := findMosquitto()
	if binary == "" {
		fmt.Fprintln(os.Stderr, noMosquitto)
		return nil, nil
	}
	ports, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(ports[0])
	if err != nil {
		return nil, err
	}
	var users bytes.Buffer
	for _, l := range logins {
		fmt.Fprintf(&users, "%s:%s\n", l.User, l.Password)
	}
	passwords := filepath.Join(b.dir, "mosquitto-passwords")
	if err := os.WriteFile(passwords, users.Bytes(), 0o600); err != nil {
		return nil, fmt.Errorf("write the passwords of mosquitto: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "mosquitto_passwd", "-U", passwords).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("hash the passwords of mosquitto: %w\n%s", err, out)
	}
	conf := filepath.Join(b.dir, "mosquitto.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "user root\nlistener %s 127.0.0.1\nallow_anonymous false\npassword_file %s\npersistence false\nlog_type error\nlog_type warning\n", port, passwords), 0o600); err != nil {
		return nil, fmt.Errorf("write the configuration of mosquitto: %w", err)
	}
	p, err := b.start("mosquitto", nil, binary, "-c", conf)
	if err != nil {
		return nil, err
	}
	m := &broker{name: "mosquitto", process: p, address: ports[0], qos: 1, checks: true}
	return m, b.yardstick(ctx, m, logins)
}

// nats is a nats-server that speaks MQTT, with the garbage collector's pace that it
// has by default.
func (b *bench) nats(ctx context.Context, logins []fleet.Login) (*broker, error) {
	ports, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(ports[0])
	if err != nil {
		return nil, err
	}
	p, _, profiles, err := b.startNATS(ctx, "nats-server", "mqtt { host: 127.0.0.1, port: "+port+" }\n")
	if err != nil {
		return nil, err
	}
	n := &broker{name: "nats-server", process: p, address: ports[0]}
	n.collect = func(ctx context.Context, _ string) error {
		_, err := collected(ctx, profiles)
		return err
	}
	return n, b.yardstick(ctx, n, logins)
}

// startNATS runs a nats-server with JetStream, and returns where its clients connect
// and where its profiles are.
func (b *bench) startNATS(ctx context.Context, name, more string) (p *process, clients, profiles string, err error) {
	binary, err := tools.Ensure(ctx, tools.NatsServer, func(line string) { fmt.Fprintln(os.Stderr, " ", line) })
	if err != nil {
		return nil, "", "", err
	}
	ports, err := freeAddresses(2)
	if err != nil {
		return nil, "", "", err
	}
	_, profilePort, err := net.SplitHostPort(ports[1])
	if err != nil {
		return nil, "", "", err
	}
	conf := filepath.Join(b.dir, name+".conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "server_name: %s\nlisten: %s\nprof_port: %s\njetstream { store_dir: %q }\n%s", name, ports[0], profilePort, filepath.Join(b.dir, name), more), 0o600); err != nil {
		return nil, "", "", fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	if p, err = b.start(name, []string{"GOGC=100"}, binary, "-c", conf); err != nil {
		return nil, "", "", err
	}
	return p, ports[0], ports[1], nil
}

// everybody is the topic that all displays of a yardstick listen to; its length is
// about that of a device's own.
const everybody = "d/everybody_of_this_broker_at_once/down/commands"

// yardstick completes a broker on which a change is one message to everybody.
func (b *bench) yardstick(ctx context.Context, m *broker, logins []fleet.Login) error {
	listening := make([]fleet.Login, len(logins))
	for i, l := range logins {
		listening[i] = fleet.Login{User: l.User, Password: l.Password, Filter: everybody}
	}
	m.text = func(number int) string {
		return fmt.Sprintf(`{"command_id":"cmd_01KAJ5R9ZKX3V5T7R9P1M3K5H7","kind":"IDENTIFY","duration_ms":%d}`, 1000*number)
	}
	m.change = func(ctx context.Context, number int) error {
		_, err := m.fleet.do(ctx, fleet.Order{Do: fleet.Publish, Topic: everybody, QoS: m.qos, Text: m.text(number), Within: mostWait})
		return err
	}
	var err error
	if m.fleet, err = b.startFleet("players-of-"+m.name, listening); err != nil {
		return err
	}
	return until(ctx, m.name+" listens", func(ctx context.Context) error { return knock(ctx, m.address) })
}

// knock says whether somebody listens.
func knock(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
