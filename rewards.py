def extract_boxed(text):
    i = text.rfind("\\boxed{")
    if i < 0: return None
    d=0
    for j in range(i+6,len(text)):
        d += (text[j]=="{") - (text[j]=="}")
        if d==0: return text[i+7:j]
    return None
def grade(response, gold):
    b = extract_boxed(response)
    return 1.0 if b is not None and b.strip()==gold else 0.0
