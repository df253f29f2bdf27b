"""The system prompts of the paper for mathematics in words, and the default date of prompts."""

PAPER_SYSTEM_PROMPT = """\
You are a helpful assistant for solving mathematical problems. A user will provide a math problem, \
which may include a partial solution. Your task is to continue the solution by providing the very \
next logical step.

A user will ask you to solve a task. You should first draft your thinking process (inner \
monologue). Then, generate the solution.

Your response format must follow the template below:
<think> Your thoughts or/and draft, like working through an exercise on scratch paper. Be as \
casual and as long as you want until you are confident to generate a correct solution. </think>
Provide only the single, next step to continue the solution. Do not solve the entire problem."""
"""The system prompt for one step, as published (arXiv 2510.25992)."""

PAPER_EVALUATION_PROMPT = (
    "Please reason step by step, and put your final answer within \\boxed{}. You can draft your "
    'thinking process inside <think> </think> tags anywhere. This is your "scratch paper".'
)
"""The prompt for a whole solution, as published (arXiv 2510.25992)."""

PROMPT_DATE = "2024-07-26"
"""The date for a chat template that asks for one; it is the date in Llama 3.2's own template."""
