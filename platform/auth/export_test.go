package auth

// JudgeOpen is what happens once a second while calls are open.
func (v *Verifier) JudgeOpen() { v.judgeOpen() }
