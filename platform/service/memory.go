package service

import (
	"os"
	"runtime/debug"
	"strconv"
)

// defaultMemory is what a process may use, in MiB, where Nomad does not say.
const defaultMemory = 256

// collectLess has the garbage collector run a quarter as often as by default: a
// service keeps little and allocates much, and spends about a tenth of its time
// collecting otherwise. Above three quarters of the memory that it has it
// collects as often as it must. GOGC and GOMEMLIMIT go before.
func collectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		memory, err := strconv.ParseInt(os.Getenv("NOMAD_MEMORY_LIMIT"), 10, 64)
		if err != nil || memory <= 0 {
			memory = defaultMemory
		}
		debug.SetMemoryLimit(memory << 20 / 4 * 3)
	}
}
