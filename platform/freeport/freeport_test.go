package freeport

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// childVariable has the test binary take ports and print them until its input
// ends.
const childVariable = "MARQUEE_TEST_FREEPORT_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	ports, err := Take(500)
	fmt.Println(strings.Trim(fmt.Sprint(ports), "[]"), err)
	_, _ = os.Stdin.Read(make([]byte, 1)) // its end is awaited
}

func TestTake(t *testing.T) {
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childVariable+"=1")
	input, err := child.StdinPipe()
	require.NoError(t, err)
	output, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	text := make([]byte, 1<<16)
	n, err := output.Read(text)
	require.NoError(t, err)
	theirs := map[string]bool{}
	for _, field := range strings.Fields(string(text[:n])) {
		theirs[field] = true
	}
	require.Len(t, theirs, 501, "500 ports and no error: %s", text[:n])

	seen := map[int]bool{}
	for range 100 {
		ports, err := Take(5)
		require.NoError(t, err)
		for _, port := range ports {
			require.False(t, seen[port], "%d twice", port)
			require.False(t, theirs[strconv.Itoa(port)], "%d is another process's", port)
			seen[port] = true
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			require.NoError(t, err)
			require.NoError(t, l.Close())
		}
	}
	require.NoError(t, input.Close())
	require.NoError(t, child.Wait())
}

func TestTakeTooMany(t *testing.T) {
	_, err := Take(5000)
	require.EqualError(t, err, "no 5000 free ports between 61000 and 65500 on 127.0.0.1")
}
