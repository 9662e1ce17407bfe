package fleet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/freeport"
	"github.com/marquee-ads/marquee/platform/tools"
)

// startBroker runs a nats-server that speaks MQTT until the test ends.
func startBroker(t *testing.T) (address string, kill func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // from cold it is built
	defer cancel()
	binary, err := tools.Ensure(ctx, tools.NatsServer, func(string) {})
	require.NoError(t, err)
	ports, err := freeport.Take(2)
	require.NoError(t, err)
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, "server_name: fleet\nlisten: 127.0.0.1:%d\njetstream { store_dir: %q }\nmqtt { host: 127.0.0.1, port: %d }\nauthorization { user: ada, password: good }\n", ports[0], dir, ports[1]), 0o600))
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	cmd := exec.Command(binary, "-c", conf)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	killed := false
	kill = func() {
		if !killed {
			killed = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(func() {
		kill()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the broker said\n%s", text)
		}
	})
	address = fmt.Sprint("127.0.0.1:", ports[1])
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, 30*time.Second, 20*time.Millisecond, "the broker does not listen")
	return address, kill
}

// serve runs a fleet, to which tell gives orders.
func serve(t *testing.T, logins []Login) (tell func(Order) Report) {
	t.Helper()
	orders, in := io.Pipe()
	out, reports := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- Serve(t.Context(), logins, orders, reports) }()
	t.Cleanup(func() {
		in.Close()
		require.NoError(t, <-ended)
	})
	to, from := json.NewEncoder(in), json.NewDecoder(out)
	return func(o Order) (r Report) {
		t.Helper()
		if o.Within == 0 {
			o.Within = 20 * time.Second
		}
		require.NoError(t, to.Encode(o))
		require.NoError(t, from.Decode(&r))
		return r
	}
}

func logins(n int) []Login {
	all := make([]Login, n)
	for i := range all {
		all[i] = Login{User: "ada", Password: "good", Filter: "d/all/down/commands"}
	}
	return all
}

func TestFleet(t *testing.T) {
	address, kill := startBroker(t)
	const clients = 20
	tell := serve(t, logins(clients))
	do := func(o Order) Report {
		t.Helper()
		r := tell(o)
		require.Empty(t, r.Error)
		return r
	}
	for _, qos := range []byte{0, 1} {
		connected := do(Order{Do: Connect, Address: address, Clients: clients, AtOnce: 4})
		require.Positive(t, connected.Took())
		require.LessOrEqual(t, connected.P50, connected.P99)
		require.Contains(t, tell(Order{Do: Connect, Address: address, Clients: 1, AtOnce: 1}).Error, "20 are")
		do(Order{Do: Subscribe, QoS: qos, AtOnce: 4})
		for _, text := range []string{"first", "second"} {
			do(Order{Do: Expect, Text: text})
			sent := do(Order{Do: Publish, Topic: "d/all/down/commands", QoS: qos, Text: "the " + text + " change"})
			all := do(Order{Do: Await})
			require.True(t, all.Ended.After(sent.Began), "it came before it was sent")
		}
		// What does not come is waited for no longer than one is told to.
		do(Order{Do: Expect, Text: "nothing"})
		do(Order{Do: Publish, Topic: "d/all/down/commands", QoS: qos, Text: "something"})
		require.Contains(t, tell(Order{Do: Await, Within: 100 * time.Millisecond}).Error, "20 of 20 clients")
		handedIn := do(Order{Do: HandIn, Batches: 2})
		require.Positive(t, handedIn.P50)
		do(Order{Do: Disconnect, AtOnce: 4})
	}
	require.Contains(t, tell(Order{Do: Publish, Topic: "d", Text: "x"}).Error, "none is connected")
	require.Contains(t, tell(Order{Do: "dance"}).Error, "nothing that a fleet does")

	t.Run("ErrLost", func(t *testing.T) {
		do(Order{Do: Connect, Address: address, Clients: clients, AtOnce: 4})
		do(Order{Do: Expect, Text: "anything"})
		kill()
		require.Contains(t, tell(Order{Do: Await}).Error, "the connection of ada ended")
		require.Contains(t, tell(Order{Do: Disconnect, AtOnce: clients}).Error, "disconnect: ")
		require.Contains(t, tell(Order{Do: Connect, Address: address, Clients: 1, AtOnce: 1}).Error, "connect: ")
	})
}

func TestFleetWithAWrongPassword(t *testing.T) {
	address, _ := startBroker(t)
	wrong := logins(3)
	wrong[1].Password = "wrong"
	tell := serve(t, wrong)
	require.Contains(t, tell(Order{Do: Connect, Address: address, Clients: 3, AtOnce: 1}).Error, "1 failed, the first: connect as ada")
}

func TestReadPacket(t *testing.T) {
	for _, size := range []int{0, 1, 127, 128, 16383, 16384, maxPacket} {
		sent := packet(publishPacket, 2, bytes.Repeat([]byte{7}, size))
		kind, flags, body, err := readPacket(bufio.NewReader(bytes.NewReader(sent)), make([]byte, 64))
		require.NoError(t, err, size)
		require.Equal(t, []int{publishPacket, 2, size}, []int{int(kind), int(flags), len(body)})
		_, _, _, err = readPacket(bufio.NewReader(bytes.NewReader(sent[:len(sent)-1])), nil)
		require.Error(t, err, "a part of %d bytes", size)
	}
	for name, sent := range map[string][]byte{
		"ErrTooLong":     packet(publishPacket, 0, make([]byte, maxPacket+1)),
		"ErrLength":      {0x30, 0xff, 0xff, 0xff, 0xff, 0x01},
		"ErrLengthAgain": {0x30, 0xff, 0xff, 0xff, 0x80},
	} {
		_, _, _, err := readPacket(bufio.NewReader(bytes.NewReader(sent)), nil)
		require.ErrorIs(t, err, errPacket, name)
	}
}

func TestParsePublish(t *testing.T) {
	for _, qos := range []byte{0, 1} {
		kind, flags, body, err := readPacket(bufio.NewReader(bytes.NewReader(publish(7, "a/b", qos, []byte("text")))), nil)
		require.NoError(t, err)
		require.EqualValues(t, publishPacket, kind)
		m, err := parsePublish(flags, body)
		require.NoError(t, err)
		require.Equal(t, message{id: 7 * uint16(qos), topic: "a/b", payload: []byte("text")}, m)
	}
	for _, body := range []string{"", "\x00", "\x00\x04abc", "\x00\x01a\x00"} {
		_, err := parsePublish(2, []byte(body))
		require.ErrorIs(t, err, errPacket, "%q", body)
	}
}

func TestBatch(t *testing.T) {
	start := time.Now().Add(-time.Hour)
	text, err := batchOf(3, start)
	require.NoError(t, err)
	require.Less(t, len(text), 64<<10, "a packet may not be longer")
	var batch struct {
		ID    string `json:"batch_id"`
		Plays []struct {
			ID string `json:"id"`
		} `json:"plays"`
	}
	require.NoError(t, json.NewDecoder(strings.NewReader(string(text))).Decode(&batch))
	require.Equal(t, "3", batch.ID)
	require.Len(t, batch.Plays, BatchPlays)
	last, err := ulid.ParseStrict(batch.Plays[BatchPlays-1].ID)
	require.NoError(t, err)
	require.WithinDuration(t, start.Add((BatchPlays-1)*PlayLength), last.Timestamp(), time.Millisecond)
}
