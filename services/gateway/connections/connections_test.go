package connections

import (
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

func TestClientOf(t *testing.T) {
	for name, test := range map[string]struct {
		address net.Addr
		want    string
	}{
		"IPv4":          {&net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 1}, "192.0.2.7/32"},
		"IPv4InIPv6":    {&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.7").To16(), Port: 2}, "192.0.2.7/32"},
		"IPv6":          {&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3:4:5:6"), Port: 1}, "2001:db8:1:2::/64"},
		"IPv6LinkLocal": {&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, "fe80::/64"},
		"Unix":          {&net.UnixAddr{Name: "x"}, "invalid Prefix"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, clientOf(test.address).String()) })
	}
}

// What is counted in is counted out once, and nothing stays behind of those who left.
func TestLimit(t *testing.T) {
	l, err := New("connections", "max-connections", 2, 0, prometheus.NewRegistry())
	require.NoError(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := l.Listener(tcp, nil)
	t.Cleanup(func() { listener.Close(); l.Wait() })
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", listener.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for range 3 {
		var inside []net.Conn
		for range 2 {
			dial()
			conn, err := listener.Accept()
			require.NoError(t, err)
			inside = append(inside, conn)
		}
		require.Equal(t, 2, l.count())
		accepted := make(chan net.Conn)
		go func() {
			conn, err := listener.Accept()
			if err == nil {
				accepted <- conn
			}
			close(accepted)
		}()
		_, err = dial().Read(make([]byte, 1))
		require.Error(t, err, "the third is closed")
		for _, conn := range inside {
			require.NoError(t, conn.Close())
			require.Error(t, conn.Close(), "closed already")
		}
		require.Zero(t, l.count())
		dial()
		conn, ok := <-accepted
		require.True(t, ok)
		require.NoError(t, conn.Close())
		require.Empty(t, l.of)
	}
}
