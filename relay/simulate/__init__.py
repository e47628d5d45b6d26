"""What would leave when, and what holds it: the relay's own planner, lanes, limits and egresses on a clock of their own.

Nothing is sent and nothing is stored. Rules are not written a second time here: what decides is what decides in the relay
(scheduler.plan, scheduler.bounds, policy). Here is only what stands for the world: a queue in memory (`shelf`), sessions that
take so long for each message (`crew`), and time that goes from one event to the next (`run`).

What it does not know: no attempt fails, each takes the same time, and what a destination's MX says is guessed (`sites`).
"""
