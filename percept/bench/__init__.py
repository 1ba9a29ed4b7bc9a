"""The load generator: what it asks, when it asks, what it measured.

As a library:

    target = Target("http://127.0.0.1:8000/v1")
    result = await run_load(target, Workload(prompt_tokens=256), Load.closed(4, requests=32))
    summary = summarise(result, Slo(ttft_ms=500))

`percept bench` is the same with a terminal around it. Knows the OpenAI API as any
client does, and imports no service.
"""
