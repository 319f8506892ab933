"""The safety rules of the health domains tell what happens to a person now from what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_contracts.domains import load_domain

DOMAINS = Path(__file__).parents[3] / "domains"

HEART_ASKED = [
    "What is a heart attack?",
    "What are the signs of a heart attack?",
    "What are the symptoms of a stroke?",
    "Can chest pain come from the stomach?",
    "Why does my chest hurt when I climb the stairs?",
    "How is chest pain diagnosed?",
    "What is the difference between a heart attack and a cardiac arrest?",
    "How do I do CPR?",
    "When should I call an ambulance for chest pain?",
    "Who is at risk of having a heart attack?",
    "What happens if someone is having a heart attack?",
    "My father had a heart attack last year. What should he eat?",
    "My husband collapsed last year and now has a pacemaker. Can he drive?",
    "I had chest pain in 2019 and had a stent. Do I still need aspirin?",
    "Is it normal to have chest pain after bypass surgery?",
    "I am having an angiogram for chest pain next week. What should I expect?",
    "What does crushing chest pain mean?",
    "Can anxiety cause palpitations?",
    "My heart races when I drink coffee. Is that normal?",
    "Why do people faint when they see blood?",
    "I have heart failure and get breathless lying flat. How many pillows may I use?",
    "Can't I take ibuprofen with warfarin?",
    "What should I do if someone is not breathing?",
    "What should I do if my neighbour is not breathing?",
    "How does a person know that it is a heart attack?",
    "How can I tell if a person is having a stroke?",
    "My chest feels tight when I walk uphill and eases when I stop. What is that called?",
    "What does a slurred speech have to do with stroke?",
    "Why does one side of the face droop in a stroke?",
    "Is a stroke the same as a heart attack?",
    "My mother has a weak pulse and swollen ankles. What could heart failure look like?",
    "Does a defibrillator hurt?",
    "I get chest pain when I exercise. Which tests are done?",
    "Can you have chest pain with a normal ECG?",
    "My cholesterol is high and I have a family history. What now?",
    "I have had chest pain on and off since March. Which tests are there?",
    "My dad has angina. Is he allowed to exercise?",
    "How long does chest pain last in angina?",
    "My son fainted at school last week. What is syncope?",
    "She has an ICD. Can she go through airport security?",
    "What does unconscious mean?",
    "I am in a stroke rehab group. Is swimming fine?",
    "My friend is having a stress test tomorrow. What happens?",
    "Can a heart stop beating and start again?",
    "I'm having a hard time giving up salt",
    "Is the pain of a heart attack spreading or fixed?",
    "My wife has heart failure and her ankles swell. Why?",
    "What is the recovery after a cardiac arrest?",
    "My grandfather died of a stroke. Am I at risk?",
    "Does my arm going numb at night mean heart disease?",
    "Which arm hurts in a heart attack?",
    "I passed out once as a teenager. Does that matter?",
    "My heart is pounding after running. Is that healthy?",
    "I feel tired since I take a beta blocker",
    "Do I call 112 or 999 in the UK?",
    "I'm going to die one day, should I bother with statins?",
    "Why is my speech therapist part of the stroke team?",
]
HEART_NOW = [
    "I'm having chest pain right now",
    "I am having crushing chest pain",
    "My husband has chest pain and is sweating",
    "I have chest pain and my left arm is numb",
    "chest pain now, what do I do",
    "Help, chest pain spreading to my jaw",
    "My chest feels so tight and I can't breathe",
    "It feels like an elephant is sitting on my chest",
    "I think I'm having a heart attack",
    "I think my dad is having a heart attack",
    "My wife is having a heart attack!",
    "He is having a stroke, what should I do?",
    "I might be having a stroke",
    "My mum's face has suddenly drooped",
    "The left side of his face is drooping",
    "She can't lift her right arm and talks nonsense",
    "His speech is slurred and he seems confused",
    "My husband just collapsed",
    "Dad collapsed and isn't breathing",
    "My friend has just passed out",
    "She is unconscious",
    "He's not breathing",
    "My neighbour is unresponsive on the floor",
    "I can't wake my wife up",
    "His heart stopped, help",
    "I can't find a pulse, what do I do?",
    "I cannot breathe",
    "I feel like I'm dying",
    "Should I call an ambulance? My dad has pain in his chest",
    "My heart is racing and I'm about to faint",
    "the pain is spreading to my arm",
    "My left arm has suddenly gone numb",
    "I've had chest pain for half an hour",
    "How do I know if I'm having a heart attack?",
    "Mum is slurring her words",
    "there's a heavy pressure in my chest and I'm sweating",
    "I've got terrible chest pain and feel sick",
    "I got this really bad pain in my chest right now",
    "My boss just keeled over at his desk",
    "a man has just collapsed in the gym",
    "my grandma's mouth is drooping on one side",
    "My brother isn't breathing",
    "he has no pulse",
    "mum won't wake up",
    "her speech has gone funny and slurred",
    "Someone next to me is having a heart attack",
    "Is this a heart attack? my chest is tight and my arm hurts",
    "I can't get enough air",
    "Should I call 999, my wife has chest pain",
    "my right arm just went numb",
    "Dad is unconscious and gasping",
    "I'm about to pass out",
    "the chest pain won't go away and I feel faint",
    "my chest hurts so bad",
    "help my husband has collapsed",
    "He\u2019s not breathing",
]


def rules(domain: str, text: str) -> set[str]:
    return {rule.name for rule in load_domain(DOMAINS / domain).domain.triggered(text)}


@pytest.mark.parametrize("text", HEART_ASKED)
def test_a_question_about_the_heart_is_answered(text: str) -> None:
    assert rules("cardiology", text) == set()


@pytest.mark.parametrize("text", HEART_NOW)
def test_a_heart_emergency_now_is_told_to_call(text: str) -> None:
    assert rules("cardiology", text) == {"emergency"}
