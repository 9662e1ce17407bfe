package auth

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLogOutBounds is the sum that stands beside the constants.
func TestLogOutBounds(t *testing.T) {
	require.LessOrEqual(t, PublishedAge+PollInterval+max(pollTimeout, earlyInterval)+pollTimeout+judgeInterval, LogOutWithin)
	require.LessOrEqual(t, PublishedAge+maxAge+judgeInterval, LogOutWithinUnreached)
	// What is promised to everyone.
	require.Equal(t, 10*time.Second, LogOutWithin)
	require.Equal(t, 30*time.Second, LogOutWithinUnreached)
	// A slow answer does not put off the next question.
	require.Less(t, pollTimeout, PollInterval-PollInterval/5)
}
